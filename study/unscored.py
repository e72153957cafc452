"""Metrics that were asked for and have no row, each with its reason: `unscored.json` in a run's folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from study.atomic import write_json
from study.strict_json import parse_json


def read_unscored(path: Path) -> dict[str, str]:
    """{metric: why it is empty}; nothing if every metric asked for has a row."""
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(metric): str(reason) for metric, reason in found.items()} if isinstance(found, dict) else {}


def write_unscored(path: Path, reasons: Mapping[str, str]) -> None:
    if reasons:
        write_json(path, dict(reasons))
    else:
        path.unlink(missing_ok=True)


def lines(reasons: Mapping[str, str]) -> list[str]:
    """One line per reason, with all the metrics it empties."""
    return [f"{', '.join(metrics)}: n/a: {reason}" for reason, metrics in _by_reason([reasons]).items()]


def lines_of_many(runs: Iterable[Mapping[str, str]]) -> list[str]:
    """The same over several runs, with how many of them it holds for."""
    each = list(runs)
    told = []
    for reason, metrics in _by_reason(each).items():
        count = sum(reason in reasons.values() for reasons in each)
        told.append(f"{', '.join(metrics)}: n/a in {count} of {len(each)} runs: {reason}")
    return told


def _by_reason(runs: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for reasons in runs:
        for metric, reason in reasons.items():
            metrics = found.setdefault(reason, [])
            if metric not in metrics:
                metrics.append(metric)
    return found
