"""A measured cell as a line of a table: for programs one number a column, for people with n and its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from study.bench.rows import MS, Line, Measured
from study.cost.table import print_table

Record = Mapping[Any, Any]
SPANS = {  # people's column: the number, the ends of its 95 % interval
    "ms [95 %]": ("ms", "low", "high"),
    "ratio [95 %]": ("ratio", "ratio_low", "ratio_high"),
    "CPU ratio [95 %]": ("cpu_ratio", "cpu_ratio_low", "cpu_ratio_high"),
}
COLUMNS = (
    "subject", "shape", "batch", "dtype", "what", "ms [95 %]", "iqr", "p95", "n", "ratio [95 %]", "CPU ratio [95 %]",
    "images_s", "mfu", "peak_mib", "note",
)  # fmt: skip


def table_line(line: Line) -> dict[str, Any]:
    """Milliseconds, and what they mean; None where a number is not to be believed."""
    cell, summary = line.measured.cell, line.reported
    return {
        "cell": cell.id,
        "subject": cell.subject.name,
        "shape": cell.subject.shape,
        "batch": cell.batch,
        "dtype": cell.dtype + (" compiled" if cell.compile else ""),
        "what": f"{line.metric} x{cell.steps}" if cell.mode == "sample" else line.metric,
        "ms": summary and summary.median * MS,
        "low": summary and summary.interval[0] * MS,
        "high": summary and summary.interval[1] * MS,
        "iqr": summary and (summary.high_quartile - summary.low_quartile) * MS,
        "p95": summary and summary.p95 * MS,
        "n": line.summary.n if line.summary else 0,
        "ratio": line.ratio and line.ratio.value,
        "ratio_low": line.ratio and line.ratio.interval[0],
        "ratio_high": line.ratio and line.ratio.interval[1],
        "cpu_ratio": line.cpu_ratio and line.cpu_ratio.value,
        "cpu_ratio_low": line.cpu_ratio and line.cpu_ratio.interval[0],
        "cpu_ratio_high": line.cpu_ratio and line.cpu_ratio.interval[1],
        "images_s": line.images_per_second,
        "mfu": line.mfu,
        "peak_mib": None if line.phase else _peak(line.measured),
        "note": line.note,
    }


def _peak(measured: Measured) -> float | None:
    memory = measured.memory
    return memory.get("allocated_peak_mib", memory.get("growth_mib"))


def print_lines(lines: Sequence[Record], console: Console) -> None:
    columns = filled(lines)
    print_table(None, columns, [[shown(name, line) for name in columns] for line in lines], console)


def markdown(lines: Sequence[Record]) -> str:
    columns = filled(lines)
    rows = ["| " + " | ".join(shown(name, line) for name in columns) + " |" for line in lines]
    return "\n".join(["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), *rows]) + "\n"


def filled(lines: Sequence[Record]) -> list[str]:
    """Columns that say something of any line."""
    return [name for name in COLUMNS if any(shown(name, line) for line in lines)]


def shown(column: str, line: Record) -> str:
    """A number never without its interval, where it has one."""
    if column in SPANS:
        return span(*(line.get(name) for name in SPANS[column]))
    value = line[column]
    if empty(value):
        return ""
    return f"{value:.1%}" if column == "mfu" else number(value)


def span(value: Any, low: Any, high: Any) -> str:
    if empty(value):
        return ""
    return f"{number(value)} [{'?' if empty(low) else number(low)}, {'?' if empty(high) else number(high)}]"


def number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))
