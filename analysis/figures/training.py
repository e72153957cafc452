"""What happens while runs train: loss curves, losses by noise level, and both read at equal compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.compute import at_equal_compute, common_compute, compute_unit, curves_with_compute, told
from analysis.figures.points import points_of, relative
from analysis.rows import CannotShowError, Rows, brief
from analysis.style import (
    FAINT,
    GREY,
    Label,
    canvas,
    caption,
    colour,
    drawing,
    label_ends,
    plain_log,
    say,
    wrapped,
)
from study.comparison import Cell, Metric, differences, mean_of

MOST = 10  # lines that can be told apart
BIN = "val_loss_bin"
LEVEL = "share of the way from clean to noise"


@drawing
def loss_curves(rows: Rows, metric: str = "val_loss", labels: Mapping[str, str] | None = None) -> Figure:
    """The metric while training, against images seen and against compute spent; `labels` picks and renames points."""
    curves = curves_with_compute(rows, metric)
    scale, unit = compute_unit(curves["pflops"].max())
    curves = curves.assign(pflops=curves["pflops"] * scale)
    figure, axes = canvas(2, width=8.2, height=3.3, sharey=True)
    for axis, against in zip(axes[0], ("images", "pflops"), strict=True):
        ends = _curves(axis, rows, curves, against, labels)
        if against == "images":  # where all lines end at one x
            names = ends
    axes[0, 0].set(xlabel="training images", ylabel=f"{metric} (lower is better)", title="at equal steps")
    axes[0, 1].set(xlabel=f"training {unit}", title="at equal compute")
    _say_lost(axes[0, 0], rows)
    label_ends(axes[0, 0], names)
    caption(figure, "Thick: means over seeds; thin: seeds.")
    return figure


def draw_curves(axes: Axes, rows: Rows, metric: str, labels: Mapping[str, str] | None) -> list[Label]:
    """The metric against training images, on axes of another figure; what to write at the lines' ends."""
    return _curves(axes, rows, curves_with_compute(rows, metric), "images", labels)


def _curves(
    axes: Axes, rows: Rows, curves: pd.DataFrame, against: str, labels: Mapping[str, str] | None
) -> list[Label]:
    cells = _chosen(rows, curves, labels)
    ends = [_curve(axes, curves, cell, against, _shade(rows, cells, cell), labels) for cell in cells]
    plain_log(axes, "x")
    plain_log(axes, "y")
    return ends


def _chosen(rows: Rows, curves: pd.DataFrame, labels: Mapping[str, str] | None) -> list[Cell]:
    seen = set(curves["cell"])
    cells = [cell for cell in rows.study.cells if cell.label in seen and (labels is None or cell.label in labels)]
    if not cells:
        raise CannotShowError(f"{rows.name} has none of {', '.join(labels or {})}.")
    return cells[:MOST]


def _shade(rows: Rows, cells: Sequence[Cell], cell: Cell) -> str:
    others = [other.label for other in cells if other.label not in rows.study.baselines]
    return GREY if cell.label in rows.study.baselines else colour(others.index(cell.label))


def _curve(
    axes: Axes, curves: pd.DataFrame, cell: Cell, against: str, shade: str, labels: Mapping[str, str] | None
) -> Label:
    own = curves[curves["cell"] == cell.label]
    for _, seed in own.groupby("run"):
        axes.plot(seed[against], seed["value"], color=shade, lw=0.6, alpha=0.6)
    mean = own.groupby(against)["value"].mean()
    axes.plot(mean.index, mean.to_numpy(), "o-", color=shade, markersize=3)
    name = labels[cell.label] if labels else brief(cell.label)
    return Label(float(mean.index[-1]), float(mean.iloc[-1]), wrapped(name, 24), shade)


def _say_lost(axes: Axes, rows: Rows) -> None:
    """Points that have no curve because their runs failed."""
    lost = [f"{cell.label}: {why}" for cell in rows.study.cells if (why := rows.missing(cell))]
    if lost:
        text = "missing\n" + "\n".join(wrapped(line, 34, 1) for line in lost[:6])
        axes.text(0.02, 0.02, text, transform=axes.transAxes, va="bottom", fontsize=7.5, color="#b03a2e")


@drawing
def points_at_equal_compute(rows: Rows, metric: str = "val_loss") -> Figure:
    """Per point: the metric when it had spent as much compute as the cheapest point in all."""
    budget = common_compute(rows, metric)
    return points_of(rows, at_equal_compute(rows, metric), f" at {told(budget)} each")


@drawing
def loss_by_noise(rows: Rows) -> Figure:
    """Where on the way from clean to noise the points differ: at equal steps, and at equal compute."""
    bins = bin_metrics(rows)
    figure, axes = canvas(3, width=10, height=3.4)
    levels, raw, steps, compute = _level_centres(len(bins)), axes[0, 0], axes[0, 1], axes[0, 2]
    raw_ends = [_levels_of(raw, cell, bins, levels, _shade(rows, _few(rows), cell)) for cell in _few(rows)]
    plain_log(raw, "y")
    raw.set(xlabel=LEVEL, ylabel="validation loss", title="at equal steps")
    step_ends = _relative_panel(steps, rows, lambda: bins, "to the baseline, equal steps")
    compute_ends = _relative_panel(
        compute, rows, lambda: [at_equal_compute(rows, m.name) for m in bins], "the same, equal compute"
    )
    last = (compute, compute_ends) if compute_ends else (steps, step_ends)
    for axis, ends in ((raw, raw_ends), last):
        label_ends(axis, ends)
    caption(
        figure,
        "Bands: 95 % intervals of differences paired by seed, spread of all points pooled. Bin 0, at the left, holds "
        "the least noise: detail lost by a coarser network shows there.",
    )
    return figure


def bin_metrics(rows: Rows) -> list[Metric]:
    names = sorted({m.name for m in rows.study.metrics if m.name.startswith(BIN)}, key=lambda n: int(n[len(BIN) :]))
    if not names:
        raise CannotShowError(rows.remarks[0] if rows.tidy.empty else f"{rows.name} has no loss by noise level.")
    return [rows.metric(name) for name in names]


def _level_centres(bins: int) -> list[float]:
    return [(index + 0.5) / bins for index in range(bins)]


def _few(rows: Rows) -> list[Cell]:
    seen = rows.metric(f"{BIN}0").values
    return [cell for cell in rows.study.cells if any(run in seen for run in cell.runs.values())][:MOST]


def _levels_of(axes: Axes, cell: Cell, bins: Sequence[Metric], levels: Sequence[float], shade: str) -> Label:
    means = [estimate.mean if (estimate := mean_of(cell, metric)) else math.nan for metric in bins]
    axes.plot(levels, means, "o-", color=shade, markersize=3)
    return Label(levels[-1], means[-1], wrapped(brief(cell.label), 20), shade)


def _relative_panel(axes: Axes, rows: Rows, read: Callable[[], Sequence[Metric]], title: str) -> list[Label]:
    axes.set_title(title)
    try:
        bins = read()
    except CannotShowError as reason:
        say(axes, str(reason), columns=30)
        return []
    if not rows.study.partner:
        say(axes, "No baseline is named.", columns=30)
        return []
    axes.axhline(0, color=FAINT, zorder=0)
    axes.set(xlabel=LEVEL, ylabel="difference, %")
    bases = {label: [_base(rows, label, metric) for metric in bins] for label in rows.study.baselines}
    compared = [differences(rows.study, metric) for metric in bins]
    ends = []
    for cell in _few(rows):
        base = bases.get(rows.study.partner.get(cell.label, ""))
        if base is None or cell.label in rows.study.baselines:
            continue
        band = np.array([relative(found[cell.label], of) for found, of in zip(compared, base, strict=True)])
        ends.append(_relative_line(axes, cell, band, _shade(rows, _few(rows), cell)))
    return ends


def _base(rows: Rows, label: str, metric: Metric) -> float:
    estimate = mean_of(rows.study.cell(label), metric)
    return estimate.mean if estimate else math.nan


def _relative_line(axes: Axes, cell: Cell, band: NDArray[np.float64], shade: str) -> Label:
    """band (bins, 2): differences and their reach, in percent."""
    levels, middle, reach = _level_centres(len(band)), band[:, 0], band[:, 1]
    axes.fill_between(levels, middle - reach, middle + reach, color=shade, alpha=0.15, lw=0)
    axes.plot(levels, middle, "o-", color=shade, markersize=3)
    return Label(levels[-1], float(middle[-1]), wrapped(brief(cell.label), 20), shade)
