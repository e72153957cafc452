"""The same runs read at equal training compute instead of at equal steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from analysis.rows import CannotShowError, Rows
from study import stats
from study.comparison import Metric

PASSES = 6  # operations per MAC of training: two each for the forward pass and twice that for the backward


def curves_with_compute(rows: Rows, metric: str) -> pd.DataFrame:
    """rows.curves of one metric, with `pflops`: training compute spent so far."""
    curves = rows.curves[rows.curves["metric"] == metric]
    gmacs = rows.metric("gmacs").values
    if any(measured.name == metric for measured in rows.study.metrics):
        rows.metric(metric)  # refuses curves of several protocols
    known = curves[curves["run"].isin(gmacs)]
    if known.empty:
        raise CannotShowError(f"No finished run of {rows.name} logged {metric} while it trained.")
    return known.assign(pflops=PASSES * known["images"] * known["run"].map(gmacs) / 1e6)


UNITS = ((1e-3, "EFLOPs"), (1.0, "PFLOPs"), (1e3, "TFLOPs"), (1e6, "GFLOPs"))


def compute_unit(most: float) -> tuple[float, str]:
    """What to multiply PFLOPs by for readable numbers, and its name."""
    return next((unit for unit in UNITS if most * unit[0] >= 1), UNITS[-1])


def in_readable_units(cost: Metric) -> Metric:
    """Training compute in the unit that gives numbers near one; other costs as they are."""
    if cost.name != "train_pflops":
        return cost
    scale, unit = compute_unit(max(cost.values.values()))
    return replace(cost, name=f"training {unit}", values={run: value * scale for run, value in cost.values.items()})


def common_compute(rows: Rows, metric: str) -> float:
    """The most training PFLOPs that every run reached."""
    curves = curves_with_compute(rows, metric)
    return float(curves.groupby("run")["pflops"].max().min())


def told(pflops: float) -> str:
    scale, unit = compute_unit(pflops)
    return f"{pflops * scale:.3g} training {unit}"


def at_equal_compute(rows: Rows, metric: str) -> Metric:
    """The metric of every run once it had spent what the cheapest spent in all."""
    curves = curves_with_compute(rows, metric)
    return _read(rows, metric, curves, "pflops", told(common_compute(rows, metric)))


def at_equal_time(rows: Rows, metric: str, seconds: Mapping[str, float]) -> Metric:
    """The same by the clock, from seconds per image for each point's label: as benchmarked, for runs share machines."""
    curves = curves_with_compute(rows, metric)
    untimed = sorted({cell.label for cell in rows.study.cells} - seconds.keys())
    if untimed:
        raise CannotShowError(f"No time per image is known for {untimed[0]} of {rows.name}.")
    per_run = {run: seconds[cell.label] for cell in rows.study.cells for run in cell.runs.values()}
    curves = curves.assign(seconds=curves["images"] * curves["run"].map(per_run))
    least = float(curves.groupby("run")["seconds"].max().min())
    return _read(rows, metric, curves, "seconds", f"{least:.3g} s")


def _read(rows: Rows, metric: str, curves: pd.DataFrame, spent: str, told: str) -> Metric:
    """Every run's curve at the least of that column that any run spent in all."""
    budget = float(curves.groupby("run")[spent].max().min())
    values = {}
    for run, curve in curves.sort_values("images").groupby("run"):
        if curve[spent].iloc[0] <= budget * (1 + 1e-9):
            values[str(run)] = stats.at_equal_compute(curve[spent], curve["value"], budget)
    if len(values) < curves["run"].nunique():
        raise CannotShowError(
            f"At {told}, what the cheapest run of {rows.name} spent in all, dearer ones had logged no "
            f"{metric} yet: lower train.validate_every."
        )
    return Metric(metric, rows.metric(metric).protocol, values, is_cost=False)
