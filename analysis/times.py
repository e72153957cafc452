"""Measured times, from the folders that measuring leaves: one per machine (docs/measuring.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from study.results import Row, read_rows

COLUMNS = ("series", "side", "ms", "low", "high", "device")
RATIOS = ("gmacs", "ratio", "ratio_low", "ratio_high")
SETTINGS = ("subject", "shape", "mode", "batch", "dtype", "compile", "threads", "device", "cpu", "baseline")


def load_times(results: str | Path) -> pd.DataFrame:
    """series, side, ms per image, its 95 % interval, device; empty where nothing was timed.

    Where the file has them also gmacs, and the ratio to the first series with its interval.
    """
    return _whole(results, "resolution.csv", COLUMNS)


def load_lengths(results: str | Path) -> pd.DataFrame:
    """The same of sequence mixers by `length`."""
    return _whole(results, "lengths-forward.csv", ("series", "length", *COLUMNS[2:]))


def load_cells(results: str | Path) -> pd.DataFrame:
    """One line per row of every measured cell: machine, cell, its settings, metric, value, n, 95 % interval, commit."""
    lines = [
        _line(machine.name, row)
        for machine in _machines(results)
        for file in sorted(machine.glob("runs/*/rows.jsonl"))
        for row in read_rows(file)
    ]
    columns = ["machine", "cell", *SETTINGS, "metric", "value", "low", "high", "n", "protocol", "torch", "commit"]
    return pd.DataFrame(lines, columns=columns)


def seconds_per_image(cells: pd.DataFrame, networks: Mapping[str, str], batch: int) -> dict[str, float]:
    """Of a training step, by label, for `networks` as benchmarks name them; those not measured are left out."""
    steps = cells[(cells["metric"] == "train_step_ms") & (cells["batch"].astype(str) == str(batch))]
    known = dict(zip(steps["subject"], steps["value"], strict=True))
    return {label: known[name] / 1e3 / batch for label, name in networks.items() if name in known}


def _line(machine: str, row: Row) -> dict[str, Any]:
    low, high = row.interval or (float("nan"), float("nan"))
    told = {name: row.provenance.get(name, "") for name in (*SETTINGS, "torch", "commit")}
    numbers = {"metric": row.metric, "value": row.value, "low": low, "high": high, "n": row.n}
    return {"machine": machine, "cell": row.run, **told, **numbers, "protocol": row.protocol}


def _machines(results: str | Path) -> list[Path]:
    """A machine's own folder, or those of a store; one kept in another, as `results/published`, has both's."""
    if (Path(results) / "machine.json").exists():
        return [Path(results)]
    folders = (Path(results), Path(results).absolute().parent)
    return [machine for folder in folders for machine in sorted(folder.glob("bench/*")) if machine.is_dir()]


def _whole(results: str | Path, name: str, columns: tuple[str, ...]) -> pd.DataFrame:
    files = [machine / name for machine in _machines(results)]
    parts = [pd.read_csv(file) for file in files if file.exists()]
    known = [
        part[[column for column in (*columns, *RATIOS) if column in part]]
        for part in parts
        if set(columns) <= set(part)
    ]
    return pd.concat(known, ignore_index=True) if known else pd.DataFrame(columns=list(columns))
