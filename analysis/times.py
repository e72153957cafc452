"""Measured times, from the folders that benchmarks leave: one per machine, each with `resolution.csv`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

COLUMNS = ("series", "side", "ms", "low", "high", "device")


def load_times(results: str | Path) -> pd.DataFrame:
    """series, side, ms per image, its 95 % interval, device; empty where nothing was timed.

    A store kept inside another, as `results/published` is, has the machines of both.
    """
    folders = (Path(results), Path(results).absolute().parent)
    parts = [pd.read_csv(path) for folder in folders for path in sorted(folder.glob("bench/*/resolution.csv"))]
    whole = [part[list(COLUMNS)] for part in parts if set(COLUMNS) <= set(part)]
    return pd.concat(whole, ignore_index=True) if whole else pd.DataFrame(columns=list(COLUMNS))
