"""The papers' figures: what they published, and beside it what a study here found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.training import draw_curves
from analysis.rows import CannotShowError, Rows
from analysis.style import (
    GREY,
    Label,
    canvas,
    caption,
    colour,
    drawing,
    label_ends,
    label_points,
    plain_log,
    say,
    wrapped,
)

STEPS = (50_000, 100_000, 200_000, 400_000)
HOURGLASS = {"M=2": "M=2, P=1", "P=2": "M=1, P=2"}
FIDS = (15, 20, 30, 50, 80, 120)


@drawing
def hourglass(published: pd.DataFrame, rows: Rows | None = None, labels: Mapping[str, str] | None = None) -> Figure:
    """DiffuSSM's hourglass figure: FID by step for patches against hourglass; beside it our validation loss."""
    curves = published[published["where"] == "hourglass figure"]
    return _published_beside_ours(curves, "setting", "DiffuSSM-XL, ImageNet 256 (published)", rows, labels)


@drawing
def model_scaling(published: pd.DataFrame, rows: Rows | None = None, labels: Mapping[str, str] | None = None) -> Figure:
    """DiffuSSM's scaling figure: FID by step for three sizes; beside it our validation loss."""
    curves = published[published["where"] == "model-scaling figure"]
    return _published_beside_ours(curves, "model", "DiffuSSM, ImageNet 256 (published)", rows, labels)


def _published_beside_ours(
    curves: pd.DataFrame, by: str, title: str, rows: Rows | None, labels: Mapping[str, str] | None
) -> Figure:
    figure, axes = canvas(2, width=8.6, height=3.4)
    left, right = axes[0]
    ends = _published_curves(left, curves, by)
    plain_log(left, "x", STEPS)
    plain_log(left, "y", FIDS)
    left.set(xlabel="training steps", ylabel="FID-50K, no guidance", title=title)
    ours = _our_curves(right, rows, labels)
    label_ends(left, ends)
    label_ends(right, ours)
    caption(figure, "Published values were read off the printed figure: bars, at times smaller than the dots, are the "
            "reading's error; the papers give no spread over seeds. Ours: thick means over thin seeds.")  # fmt: skip
    return figure


def _published_curves(axes: Axes, curves: pd.DataFrame, by: str) -> list[Label]:
    ends = []
    for index, (name, curve) in enumerate(curves.groupby(by, sort=by == "setting")):
        ordered = curve.sort_values("step")
        x, y = ordered["step"].to_numpy(float), ordered["value"].to_numpy(float)
        axes.errorbar(x, y, yerr=ordered["error"].to_numpy(float), fmt="o-", color=colour(index))
        ends.append(Label(x[-1], y[-1], HOURGLASS.get(str(name), str(name)), colour(index)))
    return ends


def _our_curves(axes: Axes, rows: Rows | None, labels: Mapping[str, str] | None) -> list[Label]:
    try:
        if rows is None:
            raise CannotShowError("No run of this kind is in the results.")
        ends = draw_curves(axes, rows, "val_loss", labels)
    except CannotShowError as reason:
        say(axes, str(reason), columns=40)
        return []
    axes.set(xlabel="training images", ylabel="validation loss", title=f"ours: {rows.name}")
    return ends


@drawing
def fid_vs_gflops(published: pd.DataFrame) -> Figure:
    """DiT's twelve models at 400K steps, FID against Gflops; DiffuSSM-XL where its figures put it."""
    models = published[published["where"] == "table of the 12 models"]
    table = models.pivot_table(index="model", columns="metric", values="best", sort=False)
    if not {"fid", "gmacs"} <= set(table):
        raise CannotShowError("The published tables at hand lack FID or Gflops of DiT's twelve models.")
    figure, axes = canvas(width=6.4, height=4)
    ends, points = [], []
    for index, size in enumerate(("S", "B", "L", "XL")):
        own = table[table.index.str.match(f"DiT-{size}/")].sort_values("gmacs")
        axes.plot(own["gmacs"], own["fid"], "o-", color=colour(index))
        points += [Label(g, f, "/" + m.split("/")[1], colour(index)) for m, g, f in own[["gmacs", "fid"]].itertuples()]
        if len(own):
            points[-1] = Label(points[-1].x, points[-1].y, f"DiT-{own.index[-1].removeprefix('DiT-')}", colour(index))
    ends += _diffussm_point(axes, published)
    plain_log(axes, "x", (0.3, 1, 3, 10, 30, 100, 300))
    plain_log(axes, "y", (15, 20, 30, 50, 80, 120, 160))
    axes.set(xlabel="GMACs per image (the papers' Gflops)", ylabel="FID-50K at 400K steps, no guidance")
    axes.margins(x=0.12, y=0.1)
    label_points(axes, points + ends)
    caption(figure, "Single published runs: no spread is known. One colour per width and depth; /8, /4, /2: patches. "
            "DiffuSSM-XL: FID digitised, Gflops implied by its printed total.")  # fmt: skip
    return figure


def _diffussm_point(axes: Axes, published: pd.DataFrame) -> list[Label]:
    fid = published[(published["where"] == "hourglass figure") & (published["setting"] == "M=2")]
    total = published[(published["model"] == "DiffuSSM-XL") & (published["resolution"] == 256)]
    totals, images = (total[total["metric"] == name]["value"] for name in ("total_gflops", "images_m"))
    if fid.empty or totals.empty or images.empty:
        return []
    last = fid.sort_values("step").iloc[-1]
    gmacs = float(totals.iloc[0]) / (float(images.iloc[0]) * 1e6)
    axes.errorbar([gmacs], [last["value"]], yerr=[last["error"]], fmt="D", color=GREY)
    return [Label(gmacs, float(last["value"]), "DiffuSSM-XL", GREY)]


DIS_PANELS = {
    "patch size": ("backbone.P", "2, the smallest, is best"),
    "long skip": ("backbone.skip", "concatenation and a linear map beats addition and none"),
    "conditioning": ("backbone.condition", "ways for time and label to enter"),
    "depth": ("backbone.depth", "quality scales with depth"),
    "width": ("backbone.width", "quality scales with width"),
}
"""Panel: our key, and what the paper says of it in words."""


@drawing
def dis_panels(studies: Mapping[str, Rows]) -> Figure:
    """DiS's ablations, a panel each. Its curves were not to be had: ours stand alone, or a sentence that none ran."""
    figure, axes = canvas(3, 2, width=9.6, height=5.6)
    panels = axes.ravel()
    ends = []
    for axis, (name, (_, claim)) in zip(panels, DIS_PANELS.items(), strict=False):
        ends.append(_dis_panel(axis, studies.get(name)))
        axis.set_title("\n".join([name, wrapped(f"paper: {claim}", 34, 2)]))
    for axis in panels[len(DIS_PANELS) :]:
        axis.set_axis_off()
    for axis, labels in zip(panels, ends, strict=False):
        label_ends(axis, labels)
    caption(figure, "The paper's panels show FID-10K on CIFAR-10 by training step; their values were not to be had. "
            "Ours: validation loss, thick means over thin seeds.")  # fmt: skip
    return figure


def _dis_panel(axes: Axes, rows: Rows | None) -> Sequence[Label]:
    if rows is None:
        say(axes, "Published values not found; no run of it here.", columns=30)
        return []
    return _our_curves(axes, rows, None)
