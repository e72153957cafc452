"""What length and resolution cost: on paper from the configs alone, and as measured."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.rows import CannotShowError
from analysis.style import Label, canvas, caption, colour, drawing, label_ends, plain_log
from analysis.time_tables import networks
from models import DenoiserConfig
from models.denoiser import named_config

FACTOR = 8  # pixels per latent, each way
SIDES = (128, 256, 512, 1024)  # pixels


def resolution_costs(sides: tuple[int, ...] = SIDES) -> pd.DataFrame:
    """series, side, tokens (without patches), gmacs of XL networks on latents of these images: closed forms."""
    lines = [
        (name, side, (side // FACTOR) ** 2, config.macs((side // FACTOR, side // FACTOR)).total / 1e9)
        for name, config in _series().items()
        for side in sides
    ]
    return pd.DataFrame(lines, columns=["series", "side", "tokens", "gmacs"])


def _series() -> dict[str, DenoiserConfig]:
    """The paper's counterfactuals: attention with and without patches or hourglass, and the SSM."""
    return {
        "DiT, P=2": named_config("dit-xl/2"),
        "DiT, P=1": named_config("dit-xl/2", P=1),
        "attention, P=1, M=2": named_config("diffussm-xl", mixer="attention", M=2),
        "DiffuSSM, P=1, M=1": named_config("diffussm-xl", M=1),
        "DiffuSSM, P=1, M=2": named_config("diffussm-xl", M=2),
    }


def published_points(published: pd.DataFrame) -> pd.DataFrame:
    """series, side, gmacs that the papers print, or that follow from the totals they print."""
    dit = published[(published["model"] == "DiT-XL/2") & (published["metric"] == "gmacs")]
    lines = [
        ("DiT, P=2", int(side), float(value)) for side, value in dit[["resolution", "best"]].dropna().to_numpy(float)
    ]
    ssm = published[published["model"].isin(("DiffuSSM-XL", "DiffuSSM-XL-G"))]
    for side in sorted(set(ssm["resolution"].dropna().astype(int))):
        group = ssm[ssm["resolution"] == side]
        total, images = (group[group["metric"] == name]["value"] for name in ("total_gflops", "images_m"))
        if len(total) and len(images):
            lines.append(("DiffuSSM, P=1, M=2", side, float(total.iloc[0]) / float(images.iloc[0]) / 1e6))
    return pd.DataFrame(lines, columns=["series", "side", "gmacs"]).drop_duplicates(["series", "side"])


@drawing
def gflops_vs_resolution(costs: pd.DataFrame, printed: pd.DataFrame) -> Figure:
    """GMACs of one image by resolution and length; rings: what the papers' numbers say."""
    figure, axes = canvas(width=7, height=4)
    ends = []
    for index, (name, series) in enumerate(costs.groupby("series", sort=False)):
        axes.plot(series["side"], series["gmacs"], "o-", color=colour(index), markersize=3)
        own = printed[printed["series"] == name]
        axes.plot(own["side"], own["gmacs"], "o", mfc="none", color=colour(index), markersize=9)
        ends.append(Label(series["side"].iloc[-1], series["gmacs"].iloc[-1], str(name), colour(index)))
    plain_log(axes, "x", [*costs["side"].unique()])
    plain_log(axes, "y")
    tokens = costs.drop_duplicates("side").set_index("side")["tokens"]
    axes.set_xticks(list(tokens.index), [f"{side} px\nL={count}" for side, count in tokens.items()])
    axes.set(xlabel="image side, and tokens at P=1", ylabel="GMACs per image (the papers' Gflops)")
    label_ends(axes, ends)
    caption(figure, "XL networks on latents an eighth of the side; closed forms, exact. Rings: printed for DiT; for "
            "DiffuSSM implied by the printed totals and images.")  # fmt: skip
    return figure


@drawing
def time_vs_resolution(measured: pd.DataFrame) -> Figure:
    """Measured milliseconds per image by image side; `measured` has series, side, ms, low, high and device."""
    if measured.empty:
        raise CannotShowError("Nothing was timed yet: python -m study.bench scaling measures time against resolution.")
    return _time_against(measured, "side", "side of the network's input")


@drawing
def time_vs_length(measured: pd.DataFrame) -> Figure:
    """The same of sequence mixers by the length of the sequence, in the column `length`."""
    if measured.empty:
        raise CannotShowError("No layer was timed yet: python -m study.bench lengths measures them against length.")
    return _time_against(measured, "length", "length of the sequence")


def _time_against(measured: pd.DataFrame, axis: str, words: str) -> Figure:
    devices = sorted(measured["device"].astype(str).unique())
    if len(devices) > 1:
        raise CannotShowError(f"Times of {len(devices)} devices share no axis: {', '.join(devices)}; pick one.")
    figure, axes = canvas(width=7, height=3.8)
    ends = []
    for index, (name, series) in enumerate(measured.groupby("series", sort=False)):
        own = series.sort_values(axis)
        axes.vlines(own[axis], own["low"], own["high"], color=colour(index), lw=1)
        axes.plot(own[axis], own["ms"], "o-", color=colour(index))
        if "gmacs" in own:
            axes.plot(
                own[axis], own["gmacs"] * own["ms"].iloc[-1] / own["gmacs"].iloc[-1], ":", color=colour(index), lw=1
            )
        ends.append(Label(own[axis].iloc[-1], own["ms"].iloc[-1], str(name), colour(index)))
    plain_log(axes, "x")
    ticks = sorted(int(at) for at in measured[axis].unique())
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    plain_log(axes, "y")
    axes.set(xlabel=words, ylabel="milliseconds per image", title=devices[0])
    label_ends(axes, ends)
    dotted = " Dotted: what MACs predict, through the last point." if "gmacs" in measured else ""
    caption(figure, f"Bars: 95 % intervals over repetitions.{dotted}")
    return figure


QUANTITIES = {"latency_ms": "latency of one call", "train_step_ms": "training step"}


@drawing
def network_times(cells: pd.DataFrame) -> Figure:
    """Every network's latency and training step at batch 1, with intervals; `cells` as `load_cells` gives them."""
    shown = networks(cells)
    shown = shown[shown["metric"].isin(QUANTITIES) & (shown["batch"] == "1")]
    if shown.empty:
        raise CannotShowError("No network was timed yet: python -m study.bench record measures every family.")
    machines = sorted(shown["machine"].unique())
    if len(machines) > 1:
        raise CannotShowError(f"Times of {len(machines)} machines share no axis: {', '.join(machines)}; pick one.")
    shapes = sorted(shown["shape"].unique(), key=lambda shape: int(shape.partition("x")[0]))
    figure, grid = canvas(len(QUANTITIES), len(shapes), width=7, height=0.7 + 1.6 * len(shapes))
    for row, shape in zip(grid.reshape(len(shapes), -1), shapes, strict=True):
        panel = shown[shown["shape"] == shape]
        order = list(dict.fromkeys(panel.sort_values("value", ascending=False)["subject"]))
        for axes, (metric, words) in zip(row, QUANTITIES.items(), strict=True):
            own = panel[panel["metric"] == metric]
            places = own["subject"].map(order.index)
            axes.hlines(places, own["low"], own["high"], color=colour(0), lw=3)
            axes.plot(own["value"], places, "o", color=colour(0))
            axes.set_yticks(range(len(order)), order)
            axes.set(ylim=(-0.5, len(order) - 0.5), xlabel="ms", title=f"{words}, {shape}, threads {threads(own)}")
            plain_log(axes, "x")
    caption(figure, f"{machines[0]}, batch 1. Dots: medians; bars: 95 % intervals over processes. Networks of a panel "
            "took turns; one without a dot was too noisy to be believed.")  # fmt: skip
    return figure


def threads(cells: pd.DataFrame) -> str:
    return ", ".join(sorted(set(cells["threads"])))
