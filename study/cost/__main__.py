"""`python -m study.cost dit-xl/2 diffussm-xl --size 256 512`: what networks, or a sweep's networks, cost."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from models.denoiser import DenoiserConfig, named_config, require
from study.command_line import finish
from study.cost.match import parse
from study.cost.summary import Cost, at_pixels, cost
from study.cost.table import Asked, as_csv, as_json, as_latex, print_audit, print_modules, print_rows, row
from study.marked_yaml import yaml_value
from study.options import cost_parser
from study.strict import ConfigError, from_tree, to_tree


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    return cost_parser().parse_args(argv)


def networks(asked: argparse.Namespace) -> list[tuple[str, DenoiserConfig]]:
    """Every network asked for, at every size, matched to the budget when there is one."""
    found: list[tuple[str, DenoiserConfig]] = []
    for what in asked.what:
        found += _swept(Path(what)) if what.endswith((".yaml", ".yml")) else [_named(what, asked.set)]
    if asked.size:
        found = [(name, at_pixels(config, pixels)) for name, config in found for pixels in asked.size]
    return [_matched(name, config, asked) for name, config in found] if asked.match else found


def _swept(path: Path) -> list[tuple[str, DenoiserConfig]]:
    """Every distinct network of a sweep, named by the preset, the axes and the solved sizes that make it."""
    from study.compose import DEFAULTS  # these read hydra, which names alone do not need
    from study.plan import make_plan
    from study.sweep_file import read_sweep, shown

    plan = make_plan(read_sweep(path))
    named: dict[DenoiserConfig, str] = {}
    for point in plan.points:
        chosen = {**DEFAULTS, **plan.sweep.defaults, **point.values}
        own = [key for key in point.values if key == "data" or key.startswith("backbone.")]
        words = [str(chosen["backbone"]), *(f"{plan.labels[key]}={shown(point.values[key])}" for key in own)]
        named.setdefault(point.config.backbone, " ".join([*words, plan.sizes(point)]).strip())
    return [(name, config) for config, name in named.items()]


def _named(name: str, assignments: Sequence[str]) -> tuple[str, DenoiserConfig]:
    config, fields = named_config(name), dict(_assignment("set", text) for text in assignments)
    values = {key: yaml_value(key, text) for key, text in fields.items()}
    return " ".join([name, *assignments]), from_tree(type(config), {**to_tree(config), **values})


def _matched(name: str, config: DenoiserConfig, asked: argparse.Namespace) -> tuple[str, DenoiserConfig]:
    unit, value = _assignment("match", asked.match)
    block = {unit: value, "tolerance": asked.tolerance, "prefer": asked.prefer}
    if asked.free:
        block["free"] = asked.free
    if unit == "train_pflops":
        block["images"] = asked.images or 0
    if asked.rows:
        block["rows"] = asked.rows
    solution = parse(block, config).solve(config)
    print(f"{name}: {solution}", file=sys.stderr)
    return " ".join([name, *(f"{key}={number}" for key, number in solution.fields.items())]), solution.config


def _assignment(option: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    require(bool(key and equals and value), option, text, "KEY=VALUE")
    return key, value


def report(asked: argparse.Namespace, console: Console) -> None:
    if asked.audit:
        prints = "a table of its own: leave out names and --json, --csv, --latex, --by-module"
        require(not (asked.what or asked.json or asked.csv or asked.latex or asked.by_module), "audit", True, prints)
        print_audit(console)
        return
    require(bool(asked.what), "backbones", asked.what, "one or more names or sweep files (or --audit)")
    require(asked.steps > 0, "steps", asked.steps, "a positive integer")
    given = asked.images is None or (math.isfinite(asked.images) and asked.images > 0)
    require(given, "images", asked.images, "a positive number")
    derive = Asked(asked.steps, asked.guided, asked.images, asked.batch, asked.precision, asked.exact)
    costs = [cost(name, config) for name, config in networks(asked)]
    if asked.by_module:
        for each in costs:
            print_modules(each, console)
        return
    show(costs, derive, asked, console)


def show(costs: Sequence[Cost], derive: Asked, asked: argparse.Namespace, console: Console) -> None:
    rows = [row(each, derive) for each in costs]
    for form, render in (("json", as_json), ("csv", as_csv), ("latex", as_latex)):
        if getattr(asked, form):
            print(render(rows))
            return
    print_rows(rows, console)


def main(argv: Sequence[str] | None = None) -> int:
    asked = arguments(argv)
    return finish(lambda: _cost(asked))


def _cost(asked: argparse.Namespace) -> int:
    try:
        report(asked, Console())
    except ValueError as error:
        raise ConfigError(" ".join(str(error).split())) from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
