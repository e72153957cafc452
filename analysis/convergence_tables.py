"""Tables of how runs converge: how many images a loss takes, and how steady the seeds are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.stats

from analysis.render import table
from analysis.rows import FINISHED, CannotShowError, Rows
from analysis.study_tables import compared
from models.denoiser import require
from study.comparison import Metric
from study.stats import first_reached

LEVEL = 0.95
DIVERGED = "diverged"


def images_until(rows: Rows, level: float, metric: str = "val_loss") -> pd.DataFrame:
    """Training images until a loss is first reached, read between the points of the curves of finished runs.

    A point has a mean only if all of its runs got there: of the quick ones alone it would flatter.
    """
    heading = f"{rows.name}: images until {metric} {level:g}"
    require(level > 0, "level", level, "a positive loss")
    logged = rows.curves[rows.curves["metric"] == metric]
    if logged.empty:
        return table(pd.DataFrame(), heading, [*rows.remarks, f"No run of {rows.name} logged {metric} in training."])
    finished = set(rows.runs.loc[rows.runs["status"] == FINISHED, "run"])
    curves = {str(run): curve.sort_values("images") for run, curve in logged.groupby("run") if run in finished}
    values: dict[str, float] = {}
    told = ["Between the points of a curve a power law."]
    for cell in rows.study.cells:
        own = [run for run in cell.runs.values() if run in curves]
        found = {run: first_reached(curves[run]["images"], curves[run]["value"], level) for run in own}
        early = sum(curves[run]["value"].iloc[0] <= level for run in own)
        if all(map(math.isfinite, found.values())):
            values |= found
        elif early:
            told.append(f"{cell.label}: {early} of {len(own)} runs were there at their first validation.")
        else:
            told.append(f"{cell.label}: {sum(map(math.isfinite, found.values()))} of {len(own)} runs got there.")
    reached = Metric(f"images until {level:g}", "read from curves", values, is_cost=False)
    return compared(rows, [reached], heading, told, {"mean": ",.0f", "difference": "+,.0f"})


def stability(rows: Rows, metric: str = "val_loss") -> pd.DataFrame:
    """Per point: runs, those that diverged, and how far the seeds of the rest end apart."""
    heading = f"{rows.name}: how far seeds end apart in {metric}"
    try:
        measured = rows.metric(metric)
    except CannotShowError as error:
        return table(pd.DataFrame(), heading, [*rows.remarks, str(error)])
    lines = []
    for cell in rows.study.cells:
        own = rows.runs[rows.runs["cell"] == cell.label]
        ends = [measured.values[run] for run in cell.runs.values() if run in measured.values]
        deviation, low, high = _deviation(ends)
        lines.append(
            {
                "point": cell.label,
                "runs": f"{int((own['status'] == FINISHED).sum())}/{len(own)}",
                "diverged": int((own["reason"] == DIVERGED).sum()),
                "spread": deviation,
                "low": low,
                "high": high,
            }
        )
    told = [
        *rows.remarks,
        "Spread: standard deviation over a point's seeds; low and high: its 95 % interval (chi-square).",
    ]
    return table(pd.DataFrame(lines), heading, told, formats=dict.fromkeys(("spread", "low", "high"), ".2g"))


def _deviation(values: Sequence[float]) -> tuple[float, float, float]:
    """Of single runs, with the interval that a normal spread would give it."""
    freedom = len(values) - 1
    if freedom < 1:
        return math.nan, math.nan, math.nan
    deviation = float(np.std(values, ddof=1))
    most, least = scipy.stats.chi2.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2], freedom)
    return deviation, deviation * math.sqrt(freedom / least), deviation * math.sqrt(freedom / most)
