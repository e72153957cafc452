"""The networks that a sweep file means, as far as cost goes: its backbone, overrides, axes and match.

    defaults: [backbone: diffussm-xl]
    overrides: {backbone.size: 32}
    axes: {backbone.M: [1, 2, 4]}
    match: {like: dit-xl/2, free: [depth, width], tolerance: 1%}

Every other block is left to the planner; overrides and axes outside `backbone` do not change a network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from models.denoiser import DenoiserConfig, named_config, require
from study.cost.match import parse
from study.cost.summary import with_fields

PREFIX = "backbone."


def read_sweep(path: Path) -> list[tuple[str, DenoiserConfig]]:
    """Every distinct network of a sweep, with a name that tells its axes; errors name the file."""
    try:
        return list(_networks(_load(path)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _load(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(error.strerror or "cannot be read") from error
    except yaml.YAMLError as error:
        raise ValueError("not valid YAML: " + " ".join(str(error).split())) from error
    require(isinstance(content, dict), "content", type(content).__name__, "a mapping with defaults and axes")
    return content


def _networks(sweep: Mapping[str, Any]) -> Iterator[tuple[str, DenoiserConfig]]:
    fixed = _backbone_fields("overrides", sweep.get("overrides"))
    axes = _backbone_fields("axes", sweep.get("axes"))
    for key, values in axes.items():
        require(isinstance(values, list) and bool(values), f"axes.{PREFIX}{key}", values, "a list of values")
    for name in _backbones(sweep):
        for values in product(*axes.values()):
            point = dict(zip(axes, values, strict=True))
            config = with_fields(named_config(name), {**fixed, **point})
            label = " ".join([name, *(f"{key}={value}" for key, value in point.items())])
            yield _matched(label, config, sweep.get("match"))


def _matched(label: str, config: DenoiserConfig, block: object) -> tuple[str, DenoiserConfig]:
    if block is None:
        return label, config
    require(isinstance(block, dict), "match", block, "a mapping such as {like: dit-xl/2, free: [depth, width]}")
    assert isinstance(block, dict)
    solution = parse(block, config).solve(config)
    return " ".join([label, *(f"{key}={value}" for key, value in solution.fields.items())]), solution.config


def _backbones(sweep: Mapping[str, Any]) -> list[str]:
    """Named by the axis `backbone`, or else by the defaults list."""
    axes = sweep.get("axes") or {}
    if isinstance(axes, dict) and isinstance(axes.get("backbone"), list):
        return [str(name) for name in axes["backbone"]]
    defaults = sweep.get("defaults")
    chosen = [item["backbone"] for item in defaults or () if isinstance(item, dict) and "backbone" in item]
    require(isinstance(defaults, list) and len(chosen) == 1, "defaults", defaults, "a list with one `backbone: NAME`")
    return [str(chosen[0])]


def _backbone_fields(block: str, content: object) -> dict[str, Any]:
    require(content is None or isinstance(content, dict), block, content, f"a mapping of {PREFIX}FIELD to values")
    items = content.items() if isinstance(content, dict) else ()
    return {str(key).removeprefix(PREFIX): value for key, value in items if str(key).startswith(PREFIX)}
