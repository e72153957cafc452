"""`python -m study.cost dit-xl/2 diffussm-xl --size 256 512`: what networks, or a sweep's networks, cost."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console

from models.denoiser import DenoiserConfig, named_config, require
from study.cost.match import parse
from study.cost.summary import Cost, at_pixels, cost, with_fields
from study.cost.sweepfile import read_sweep
from study.cost.table import Asked, as_csv, as_json, as_latex, print_audit, print_modules, print_rows, row


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m study.cost", description="Parameters, MACs and memory on paper.")
    parser.add_argument("what", nargs="*", help="backbone names such as dit-xl/2, or sweep files")
    parser.add_argument("--size", nargs="+", type=int, metavar="PX", help="image sides in pixels")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="replace config fields, as M=4")
    parser.add_argument("--steps", type=int, default=250, help="denoiser steps per generated image (250)")
    parser.add_argument("--guided", action="store_true", help="guidance: two denoiser calls per step")
    parser.add_argument("--images", type=float, metavar="N", help="images of a training run, for its totals")
    parser.add_argument("--batch", type=int, metavar="B", help="predict training memory at this batch")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--exact", action="store_true", help="count the backward pass by tracing it")
    parser.add_argument("--by-module", action="store_true", help="a tree of modules")
    parser.add_argument("--match", metavar="UNIT=VALUE", help="gmacs=118.6, like=dit-xl/2, params=6e8, train_pflops=50")
    parser.add_argument("--free", nargs="+", default=["depth", "width"], metavar="FIELD", help="what --match may vary")
    parser.add_argument("--tolerance", default="1%", help="of --match (1%%)")
    parser.add_argument("--prefer", choices=("cost", "shape"), default="cost", help="among sizes within tolerance")
    parser.add_argument("--audit", action="store_true", help="the papers' totals, recomputed")
    shape = parser.add_mutually_exclusive_group()
    for form in ("json", "csv", "latex"):
        shape.add_argument(f"--{form}", action="store_true")
    return parser.parse_args(argv)


def networks(asked: argparse.Namespace) -> list[tuple[str, DenoiserConfig]]:
    """Every network asked for, at every size, matched to the budget when there is one."""
    found: list[tuple[str, DenoiserConfig]] = []
    for what in asked.what:
        found += read_sweep(Path(what)) if what.endswith((".yaml", ".yml")) else [_named(what, asked.set)]
    if asked.size:
        found = [(name, at_pixels(config, pixels)) for name, config in found for pixels in asked.size]
    return [_matched(name, config, asked) for name, config in found] if asked.match else found


def _named(name: str, assignments: Sequence[str]) -> tuple[str, DenoiserConfig]:
    fields = dict(_assignment("set", text) for text in assignments)
    config = with_fields(named_config(name), {key: yaml.safe_load(value) for key, value in fields.items()})
    return " ".join([name, *assignments]), config


def _matched(name: str, config: DenoiserConfig, asked: argparse.Namespace) -> tuple[str, DenoiserConfig]:
    unit, value = _assignment("match", asked.match)
    block = {unit: value, "free": asked.free, "tolerance": asked.tolerance, "prefer": asked.prefer}
    if unit == "train_pflops":
        block["images"] = asked.images or 0
    solution = parse(block, config).solve(config)
    print(f"{name}: {solution}", file=sys.stderr)
    return " ".join([name, *(f"{key}={number}" for key, number in solution.fields.items())]), solution.config


def _assignment(option: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    require(bool(key and equals and value), option, text, "KEY=VALUE")
    return key, value


def report(asked: argparse.Namespace, console: Console) -> None:
    if asked.audit:
        print_audit(console)
    if not asked.what:
        require(asked.audit, "backbones", asked.what, "one or more names or sweep files (or --audit)")
        return
    require(asked.steps > 0, "steps", asked.steps, "a positive integer")
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
    try:
        report(arguments(argv), Console())
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
