"""One look for every figure: colours that colour-blind readers tell apart, labels beside what they name, files
that are the same bytes whenever the figure is the same.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from typing import Any, Literal, ParamSpec

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from analysis.rows import CannotShowError

INK, GREY, FAINT = "0.15", "0.45", "0.85"
COLOURS: list[str] = [c for i, c in enumerate(sns.color_palette("colorblind").as_hex()) if i not in (7, 8)]  # no grey
MARKERS = "osD^vPX*"
MARGIN = 1.15  # line heights between two labels

LOOK: Any = {
    **sns.axes_style("ticks"),
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.08,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "errorbar.capsize": 0,
    "svg.hashsalt": "study",  # ids in SVG files follow from the content
    "svg.fonttype": "path",  # looks the same where the font is missing
    "pdf.fonttype": 42,
}

Format = Literal["png", "svg", "pdf"]
METADATA: dict[Format, dict[str, str | None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@contextmanager
def look() -> Iterator[None]:
    with mpl.rc_context(LOOK):
        yield


def canvas(
    columns: int = 1, rows: int = 1, width: float = 7.0, height: float = 3.2, **shared: Any
) -> tuple[Figure, Any]:
    """A figure and its axes: one, or an array of (rows, columns)."""
    with look():
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=columns == rows == 1, **shared)


Drawing = ParamSpec("Drawing")


def drawing(make: Callable[Drawing, Figure]) -> Callable[Drawing, Figure]:
    """Decorator of every figure function: our look inside, and a sentence where the rows make no such figure."""

    @wraps(make)
    def made(*args: Drawing.args, **kwargs: Drawing.kwargs) -> Figure:
        try:
            with look():
                return make(*args, **kwargs)
        except CannotShowError as reason:
            return sentence(str(reason))

    return made


def sentence(text: str, width: float = 7.0) -> Figure:
    """A figure that says why there is none."""
    figure, axes = canvas(width=width, height=1.0)
    say(axes, text, columns=int(width * 12))
    return figure


def say(axes: Axes, text: str, columns: int = 44) -> None:
    """A sentence instead of a plot."""
    axes.set_axis_off()
    told = "\n".join(textwrap.wrap(text, columns))
    axes.text(0.5, 0.5, told, transform=axes.transAxes, ha="center", va="center", color=GREY, style="italic")


def encode(figure: Figure, kind: Format = "png", dpi: int = 110) -> bytes:
    """The file's bytes: the same for the same figure, today and tomorrow."""
    file = io.BytesIO()
    with look():
        figure.savefig(file, format=kind, dpi=dpi, metadata=METADATA[kind])
    return file.getvalue()


def describe(figure: Figure) -> str:
    """What is drawn, in words and as a digest of the numbers to four digits."""
    titles = [axes.get_title(loc="left") or axes.get_ylabel() for axes in figure.axes]
    data = json.dumps([_drawn(axes) for axes in figure.axes])
    named = "; ".join(title.replace("\n", " ") for title in titles if title)
    return f"figure: {named or 'untitled'} [{hashlib.sha256(data.encode()).hexdigest()[:12]}]"


def _drawn(axes: Axes) -> dict[str, list[Any]]:
    """Numbers and words of an axes, without anything that depends on fonts or layout."""
    lines = [[_rounded(line.get_xdata()), _rounded(line.get_ydata())] for line in axes.lines]
    points = [_rounded(np.ma.getdata(c.get_offsets())) for c in axes.collections if hasattr(c, "get_offsets")]
    images = [hashlib.sha256(np.ascontiguousarray(image.get_array()).tobytes()).hexdigest() for image in axes.images]
    return {"lines": lines, "points": points, "images": images, "texts": [text.get_text() for text in axes.texts]}


def _rounded(values: Any) -> list[str]:
    flat = np.asarray(values).ravel()
    return [f"{value:.4g}" if isinstance(value, int | float | np.number) else str(value) for value in flat.tolist()]


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def caption(figure: Figure, text: str) -> None:
    """How to read the figure, in small letters under it."""
    columns = int(figure.get_figwidth() * 17)
    figure.supxlabel("\n".join(textwrap.wrap(text, columns)), x=0.01, ha="left", fontsize=7.5, color=GREY)


def wrapped(text: str, columns: int = 26, lines: int = 3) -> str:
    """A long name on several lines."""
    return "\n".join(textwrap.wrap(text, columns, max_lines=lines, placeholder=" ...")) or text


def plain_log(axes: Axes, which: str, ticks: Sequence[float] | None = None) -> None:
    """A logarithmic axis in ordinary numbers, at these ticks or at 1, 2, 5 of every decade in view, thinned out."""
    getattr(axes, f"set_{which}scale")("log")
    if ticks is None:
        low, high = sorted(axes.get_xlim() if which == "x" else axes.get_ylim())
        ticks = log_ticks(low, high)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(list(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= most:
            break
    if len(inside) < 3:  # less than a decade in view
        inside = [tick for tick in MaxNLocator(most - 1).tick_values(low, high) if low <= tick <= high]
    return inside[:: math.ceil(len(inside) / most) or 1]


def short(value: float) -> str:
    """1200000 -> 1.2M, 400000 -> 400k."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


@dataclass(frozen=True)
class Label:
    x: float
    y: float
    text: str
    colour: str = INK


def label_ends(axes: Axes, labels: Sequence[Label], gap: float = 6) -> None:
    """Names at the right ends of lines, moved apart where they would touch. Call once all else is drawn."""
    if not labels:
        return
    with look():
        notes = [
            axes.annotate(
                label.text,
                (label.x, label.y),
                (gap, 0),
                textcoords="offset points",
                color=label.colour,
                va="center",
                annotation_clip=False,
            )
            for label in labels
        ]
        _lay_out(axes)
        scale = 72 / axes.figure.dpi
        ends = np.array([axes.transData.transform((label.x, label.y))[1] for label in labels]) * scale
        heights = [note.get_window_extent().height * scale for note in notes]
        tall = np.array(heights) * MARGIN
        floor = axes.get_window_extent().y0 * scale
        for note, shift in zip(notes, _above(apart(ends, tall), tall, floor) - ends, strict=True):
            note.xyann = (gap, float(shift))


def apart(centres: NDArray[np.float64], heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centres moved as little as need be for intervals of these heights not to overlap (pooled like isotonic means)."""
    order = np.argsort(centres, kind="stable")
    blocks: list[tuple[list[int], float]] = []  # members from below, and the middle of the stack
    for index in order:
        members, middle = [int(index)], float(centres[index])
        while blocks and middle - _half(members, heights) < blocks[-1][1] + _half(blocks[-1][0], heights):
            below, _ = blocks.pop()
            members = below + members
            middle = _middle(members, centres, heights)
        blocks.append((members, middle))
    placed = np.empty_like(centres)
    for members, middle in blocks:
        bottom = middle - _half(members, heights)
        for member in members:
            placed[member] = bottom + heights[member] / 2
            bottom += heights[member]
    return placed


def _above(centres: NDArray[np.float64], heights: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    """Those that reach below the floor, where an axis has its numbers, are moved up, and others with them."""
    placed = centres.copy()
    for index in np.argsort(centres, kind="stable"):
        placed[index] = max(placed[index], floor + heights[index] / 2)
        floor = placed[index] + heights[index] / 2
    return placed


def _half(members: list[int], heights: NDArray[np.float64]) -> float:
    return float(heights[members].sum()) / 2


def _middle(members: list[int], centres: NDArray[np.float64], heights: NDArray[np.float64]) -> float:
    """Where the stack's middle must be for its members to move least, in squares."""
    inside = np.cumsum(heights[members]) - heights[members] / 2 - _half(members, heights)
    return float(np.mean(centres[members] - inside))


Side = Literal["left", "center", "right"]
PLACES: tuple[tuple[float, float, Side], ...] = (
    (6, 0, "left"),
    (-6, 0, "right"),
    (0, 9, "center"),
    (0, -9, "center"),
    (5, 8, "left"),
    (5, -8, "left"),
    (-5, 8, "right"),
    (-5, -8, "right"),
    (9, 16, "left"),
    (9, -16, "left"),
    (-9, 16, "right"),
    (-9, -16, "right"),
)


CLEAR = 6  # pixels that a name keeps from the frame: the layout may yet move it a little


def label_points(axes: Axes, labels: Sequence[Label], all_of_them: bool = True) -> int:
    """Names beside points, each at the first place where it covers no point, line or name and stays inside the axes.

    Without `all_of_them` a name that finds no such place is left out. How many were is returned.
    """
    left_out = 0
    with look():
        _lay_out(axes)
        points = [tuple(axes.transData.transform((label.x, label.y))) for label in labels]
        centres = np.array([*points, *_along_lines(axes)])
        taken = np.hstack([centres - 4, centres + 4])  # (boxes, 4): left, bottom, right, top
        for label in labels:
            note = axes.annotate(
                label.text, (label.x, label.y), (0, 0), textcoords="offset points", color=label.colour, va="center"
            )
            note.set_fontsize(8)
            box, hits = _settle(axes, note, taken)
            if hits and not all_of_them:
                note.remove()
                left_out += 1
            else:
                taken = np.vstack([taken, box.extents])
    return left_out


def _lay_out(axes: Axes) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()


def _settle(axes: Axes, note: Annotation, taken: NDArray[np.float64]) -> tuple[Bbox, int]:
    """Where the note came to lie, and how much it covers there, crossing the frame being the worst."""
    frame = axes.get_window_extent().padded(-CLEAR)
    best: tuple[int, float, float, Side, Bbox] | None = None
    for x, y, side in PLACES:
        note.xyann = (x, y)
        note.set_horizontalalignment(side)
        box = note.get_window_extent()
        apart_x = (taken[:, 0] > box.x1) | (taken[:, 2] < box.x0)
        apart_y = (taken[:, 1] > box.y1) | (taken[:, 3] < box.y0)
        hits = int((~(apart_x | apart_y)).sum())
        outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
        cost = hits + 8 * outside
        if best is None or cost < best[0]:
            best = (cost, x, y, side, box)
    assert best is not None
    note.xyann = (best[1], best[2])
    note.set_horizontalalignment(best[3])
    return best[4], best[0]


def _along_lines(axes: Axes) -> Iterator[tuple[float, float]]:
    """Points along every drawn line, near enough that no name fits between two of them."""
    for line in axes.lines:
        corners = axes.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()]).astype(float))
        for start, stop in pairwise(corners[np.isfinite(corners).all(axis=1)]):
            for step in np.linspace(0, 1, max(2, int(np.hypot(*(stop - start)) / 8))):
                yield tuple(start + step * (stop - start))
