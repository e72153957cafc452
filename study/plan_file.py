"""`results/<sweep>/plan.json` as its readers find it: whole, or refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from study.strict import ConfigError
from study.strict_json import read_json
from study.sweep_file import REPLICATES

NAME = "plan.json"
REMEDY = "the same sweep writes it anew"


def read_plan(folder: Path) -> dict[str, Any]:
    """The plan of the sweep whose folder this is: all that its results are compared by."""
    plan = _read(folder)
    fault = next(_faults(plan), None)
    if fault is not None:
        raise _damaged(folder, fault)
    return plan


def read_runs(folder: Path) -> dict[str, str]:
    """Label by run id, in the plan's order: all that looking after a sweep's runs needs."""
    return {point["run"]: point.get("label", "") for point in _read(folder)["points"]}


def _read(folder: Path) -> dict[str, Any]:
    """What lies there, with runs in it that can have a folder."""
    plan = read_json(folder / NAME, f"{folder} is no sweep's folder", REMEDY)
    if not isinstance(plan, dict) or not isinstance(plan.get("points"), list):
        raise _damaged(folder, "it has no list of points")
    number = next((number for number, point in enumerate(plan["points"], start=1) if not _has_run(point)), None)
    if number is not None:
        raise _damaged(folder, f"point {number} has no run")
    return plan


def _damaged(folder: Path, why: str) -> ConfigError:
    return ConfigError(f"{folder / NAME} is damaged: {why}; {REMEDY}")


def _has_run(point: Any) -> bool:
    if not isinstance(point, dict) or not isinstance(point.get("label", ""), str):
        return False
    run = point.get("run")
    return isinstance(run, str) and run.isprintable() and bool(run) and not run.startswith(".") and "/" not in run


KINDS = {"sweep": str, "question": str, "axes": dict, "together": list, "baseline": dict}


def _faults(plan: dict[str, Any]) -> Iterator[str]:
    """Why it is no whole plan; of what a later version added nothing is known, and nothing said."""
    for name, kind in KINDS.items():
        if not isinstance(plan.get(name), kind):
            yield f"{name} is missing or of another kind"
            return
    if not all(isinstance(group, list) and all(isinstance(key, str) for key in group) for group in plan["together"]):
        yield "together is not lists of axes"
    if not all(isinstance(values, list) and all(map(_is_value, values)) for values in plan["axes"].values()):
        yield "axes are not lists of values"
    if not all(map(_is_value, plan["baseline"].values())):
        yield "baseline is not of values"
    for number, point in enumerate(plan["points"], start=1):
        values = point.get("values")
        if not isinstance(values, dict) or not all(map(_is_value, values.values())):
            yield f"point {number} has no values"
        elif not isinstance(point.get("sizes"), str) or not plan["axes"].keys() - set(REPLICATES) <= values.keys():
            yield f"point {number} lacks an axis, or its sizes"


def _is_value(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_value, value))
    return value is None or isinstance(value, str | int | float)
