"""Samples side by side: a row per point, a column per class, the same noise down every column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from analysis.rows import CannotShowError, Rows
from analysis.style import GREY, canvas, caption, drawing, say, wrapped
from study.comparison import Cell
from study.data import datasets
from study.sample_files import GRID_LINE

COLUMNS = 10  # of a run's samples.png
MOST = 16  # rows of one figure


@dataclass(frozen=True)
class Strip:
    """One point's samples, one per class, or why there are none."""

    name: str
    images: NDArray[np.uint8] | None  # (classes, H, W, 3)
    reason: str = ""


def strips(rows: Rows, columns: int = 10) -> list[Strip]:
    """Of every point its first finished seed's samples; sample i has the same noise and class in all of them."""
    return [_strip(rows, cell, columns) for cell in rows.study.cells[:MOST]]


def _strip(rows: Rows, cell: Cell, columns: int) -> Strip:
    for run in cell.runs.values():
        directory = rows.directory(run)
        if directory.grid.exists():
            images = cut(directory.grid)
            return Strip(cell.label, images[: min(columns, _classes(directory.config) or columns, len(images))])
    return Strip(cell.label, None, rows.missing(cell) or "no samples were drawn")


def _classes(config: Path) -> int:
    """Of the data behind a run, 0 if unknown; read leniently, for older runs lack newer keys."""
    data = yaml.safe_load(config.read_text(encoding="utf-8")).get("data", {})
    if data.get("classes") is not None:  # of a set on disk, what was found there
        return int(data["classes"])
    known = datasets().get(data.get("name"))
    return known.classes if known else 0


def cut(path: Path) -> NDArray[np.uint8]:
    """A run's samples.png back into its images (N, H, W, 3), enlarged as they are there."""
    with Image.open(path) as file:
        sheet = np.asarray(file.convert("RGB"))
    cell = sheet.shape[1] // COLUMNS
    lines = sheet.shape[0] // cell
    grid = sheet[: lines * cell, : COLUMNS * cell].reshape(lines, cell, COLUMNS, cell, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(grid.reshape(-1, cell, cell, 3)[:, GRID_LINE:, GRID_LINE:])


@drawing
def sample_grid(given: Sequence[Strip], classes: Sequence[str] = ()) -> Figure:
    """A row per point, a column per class."""
    found = [strip.images for strip in given if strip.images is not None]
    if not found:
        reasons = {strip.reason for strip in given}
        raise CannotShowError(f"No samples to show: {', '.join(sorted(reasons)) or 'no run of it is in the results'}.")
    columns = max(len(images) for images in found)
    figure, axes = canvas(columns, len(given), width=1.7 + 0.62 * columns, height=0.55 + 0.66 * len(given))
    for line, strip in zip(axes, given, strict=True):
        for index, axis in enumerate(line):
            axis.set_axis_off()
            if strip.images is not None and index < len(strip.images):
                axis.imshow(strip.images[index], interpolation="nearest")
        line[0].text(-0.15, 0.5, wrapped(strip.name, 22, 3), transform=line[0].transAxes, ha="right", va="center",
                     fontsize=8)  # fmt: skip
        if strip.images is None:
            say(line[columns // 2], strip.reason)
    for index, axis in enumerate(axes[0]):
        axis.set_title(classes[index] if index < len(classes) else str(index), fontsize=8, color=GREY, loc="center")
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.02, wspace=0.0, hspace=0.0)
    caption(figure, "Columns: classes. Down a column: the same starting noise, label and sampler.")
    return figure
