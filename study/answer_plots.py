"""The plots a sweep ends with: quality point by point, and beside it what training cost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from study.atomic import write_file
from study.comparison import Cell, Metric, Study, differences, mean_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BASELINE, OTHER = "0.35", "C0"  # colours
PER_POINT, HIGHEST = 0.27, 30.0  # inches
UNITS = ((1.0, "PFLOP"), (1e3, "TFLOP"), (1e6, "GFLOP"), (1e9, "MFLOP"))


def draw(study: Study, metrics: Sequence[Metric], folder: Path) -> list[Path]:
    """One figure per metric: seeds, mean and the baseline's noise by point; training compute beside."""
    from matplotlib.figure import Figure

    names = [metric.name for metric in metrics]
    files = []
    for metric in metrics:
        height = min(1.2 + PER_POINT * len(study.cells), HIGHEST)
        widest = max(len(cell.label) for cell in study.cells)
        figure = Figure(figsize=(5.6 + 0.065 * widest, height), layout="constrained")
        quality, cost = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
        _draw_quality(quality, study, metric)
        _draw_cost(cost, study)
        quality.set_yticks(range(len(study.cells)), [cell.label for cell in study.cells], fontsize=8)
        quality.set_ylim(len(study.cells) - 0.5, -0.5)
        name = metric.name if names.count(metric.name) == 1 else f"{metric.name} {metric.protocol}"
        quality.set_xlabel(name, fontsize=9)
        path = folder / "plots" / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}.png"
        path.parent.mkdir(exist_ok=True)
        write_file(path, partial(figure.savefig, format="png", dpi=130))
        files.append(path)
    return files


def _draw_quality(axes: Axes, study: Study, metric: Metric) -> None:
    """Dots are seeds, bars their means; the band is what cannot be told from the baseline, where there is but one."""
    told = "dots: seeds, bars: means"
    for place, cell in enumerate(study.cells):
        mean, colour = mean_of(cell, metric), _colour(study, cell)
        values = [metric.values[run] for run in cell.runs.values() if run in metric.values]
        if mean is not None:
            axes.plot(values, [place] * len(values), ".", color=colour, alpha=0.5, markersize=6)
            axes.plot([mean.mean], [place], "|", color=colour, markersize=12, markeredgewidth=2)
    base = mean_of(study.cell(next(iter(study.baselines))), metric) if len(study.baselines) == 1 else None
    reaches = [found.reach for found in differences(study, metric).values() if found is not None and found.reach]
    if base is not None and reaches:
        axes.axvspan(base.mean - max(reaches), base.mean + max(reaches), color=BASELINE, alpha=0.12, linewidth=0)
        told += ", band: noise around the baseline"
    floor = study.floor(metric)
    if floor is not None:
        axes.axvline(floor.value, color=BASELINE, linestyle=":", linewidth=1)
        told += f"\ndotted: {floor.label}"
    axes.set_title(told, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.locator_params(axis="x", nbins=6)
    axes.grid(axis="x", alpha=0.3)


def _draw_cost(axes: Axes, study: Study) -> None:
    spent = next((metric for metric in study.metrics if metric.name == "train_pflops"), None)
    means = [mean_of(cell, spent) if spent else None for cell in study.cells]
    most = max((mean.mean for mean in means if mean is not None), default=1.0)
    scale, unit = next(((s, unit) for s, unit in UNITS if most * s >= 1), UNITS[-1])
    for place, (cell, mean) in enumerate(zip(study.cells, means, strict=True)):
        if mean is not None:
            axes.barh(place, mean.mean * scale, height=0.6, color=_colour(study, cell), alpha=0.6)
    axes.set_xlabel(f"training, {unit} per run", fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=4)
    axes.grid(axis="x", alpha=0.3)


def _colour(study: Study, cell: Cell) -> str:
    return BASELINE if cell.label in study.baselines else OTHER
