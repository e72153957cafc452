"""Rows: one typed, self-sufficient result each; and their files.

python -m study.results verify|prune|migrate|export
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from study.atomic import write_text
from study.strict_json import parse_json

HIGHER_IS_BETTER = ("is", "precision", "recall", "density", "coverage", "agreement", "images_per_second")


def is_higher_better(metric: str) -> bool:
    """By a metric's first word, as in `agreement_digits8@100`, or its whole name; of all others less is better."""
    return metric in HIGHER_IS_BETTER or metric.split("@")[0].split("_")[0] in HIGHER_IS_BETTER


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number, with all that is needed to read it without its neighbours."""

    run: str  # id of the run that produced it
    metric: str
    value: float
    units: str  # "" for a pure number
    n: int  # how many observations the value summarises
    interval: tuple[float, float] | None = None  # 95 %, over those observations
    protocol: str  # rows of different protocols are never compared
    provenance: Mapping[str, str] = field(default_factory=dict)  # code, environment, hardware

    def __post_init__(self) -> None:
        for name in ("run", "metric", "units", "protocol"):
            _require(isinstance(getattr(self, name), str), name, getattr(self, name), "a string")
        _require(bool(self.run and self.metric and self.protocol), "run, metric, protocol", "", "not empty")
        _require(_is_number(self.value), "value", self.value, "a finite number")
        object.__setattr__(self, "value", float(self.value))
        _require(type(self.n) is int and self.n > 0, "n", self.n, "a positive integer")
        if self.interval is not None:
            _require(isinstance(self.interval, tuple | list), "interval", self.interval, "two finite numbers")
            low_high = tuple(self.interval)
            _require(len(low_high) == 2 and all(map(_is_number, low_high)), "interval", low_high, "two finite numbers")
            _require(low_high[0] <= low_high[1], "interval", low_high, "(low, high)")
            object.__setattr__(self, "interval", (float(low_high[0]), float(low_high[1])))
        strings = isinstance(self.provenance, Mapping) and all(
            isinstance(key, str) and isinstance(value, str) for key, value in self.provenance.items()
        )
        _require(strings, "provenance", self.provenance, "a mapping of strings to strings")


def row_from_dict(given: Any) -> Row:
    """The row behind a dictionary, refused if a field is missing, unknown or of the wrong type."""
    if not isinstance(given, dict):
        raise ValueError(f"a row must be a mapping, not {type(given).__name__}")
    known = {f.name for f in fields(Row)}
    missing, unknown = sorted(known - given.keys()), sorted(given.keys() - known)
    if missing or unknown:
        raise ValueError(f"not a result row: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}")
    return Row(**given)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replace the file's rows, all at once."""
    write_text(path, "".join(_line(row) for row in rows))


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to those there, all at once; a row of the same metric and protocol is replaced."""
    new = list(rows)
    replaced = {(row.run, row.metric, row.protocol) for row in new}
    kept = [row for row in read_rows(path) if (row.run, row.metric, row.protocol) not in replaced]
    write_rows(path, kept + new)


def read_rows(path: Path) -> list[Row]:
    """Every row of a file, empty if there is no file; a bad line is refused by its number."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(row_from_dict(parse_json(line)))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    return rows


def _line(row: Row) -> str:
    return json.dumps(asdict(row), allow_nan=False) + "\n"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require(holds: bool, name: str, value: object, valid: str) -> None:
    if not holds:
        raise ValueError(f"row field {name}={value!r} is not valid: must be {valid}")


if __name__ == "__main__":
    from study.results_command import main

    sys.exit(main(sys.argv[1:]))
