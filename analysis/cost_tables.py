"""Tables of costs: what the papers print, what the networks here count to, and whether the two agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pandas as pd

from analysis.figures.costs import published_points
from analysis.figures.costs import resolution_costs as closed_forms
from analysis.published import published
from analysis.render import table
from models.denoiser import named_config
from models.diffussm import DiffuSSMConfig
from models.dis import DiSConfig
from models.macs import Macs
from study.cost.audit import audit, claims
from study.cost.published import Published
from study.cost.published import published as published_costs
from study.cost.summary import Cost, at_pixels, cost
from study.cost.tracer import trace

CONVENTION = "GMAC: 1e9 multiply-accumulates per image and denoiser call, which the papers call Gflops."
AGREES = 0.002  # what a printed cost may be off: rounding, and one unit per normalised element that DiT adds
DIS_NOTE = (
    "DiS prints parameters for 3 x 32 x 32 images without classes, and a cost by a tool that misses every state-space "
    "block and counts two units per MAC: see its own table."
)
TRAINABLE_NOTE = (
    "Parameters printed are held to the trainable ones: DiT-B/2 has 130.5 M with its fixed position table, 130.3 M "
    "without, and is printed as 130 M."
)
IMPLIED_NOTE = "DiffuSSM prints no cost per image: it is implied by a total, and fits M=2 better than any other ratio."


def costs(papers: Sequence[str] = ()) -> pd.DataFrame:
    """Parameters and MACs of every published network that is here: printed, counted, and a verdict."""
    lines = [_cost_line(row) for row in published_costs() if row.kind == "model" and row.backbone]
    frame = pd.DataFrame(lines)
    chosen = frame[frame["paper"].isin(papers)] if papers else frame
    notes = [
        f"match: within {AGREES:.1%}, or half of the last printed digit.",
        TRAINABLE_NOTE,
        DIS_NOTE,
        IMPLIED_NOTE,
        CONVENTION,
    ]
    return table(chosen, "Parameters and MACs, printed and counted", notes, formats={"px": "d"})


def _cost_line(row: Published) -> dict[str, object]:
    counted = _cost(row.backbone, row.resolution)
    trainable, gmacs = counted.parameters.trainable / 1e6, counted.macs.total / 1e9
    dis = row.method.startswith("DiS")
    return {
        "paper": row.source.split()[0].rstrip(",;"),
        "network": row.method,
        "px": row.resolution,
        "params printed, M": row.params_m,
        "trainable counted, M": trainable,
        "params": _verdict(row.params_m, trainable, "other images" if dis else ""),
        "GMAC printed": row.gmacs,
        "GMAC counted": gmacs,
        "GMACs": _verdict(row.gmacs, gmacs, "state-space blocks left out" if dis else ""),
        "seen": row.seen,
    }


def _verdict(printed: float | None, counted: float, reason: str = "") -> str:
    """match | off by x % | not comparable because ... | not printed."""
    if printed is None:
        return "not printed"
    if reason:
        return f"not comparable: {reason}"
    off = printed / counted - 1
    last_digit = 0.5 * 10.0 ** -_places(printed)
    return "match" if abs(off) <= AGREES or abs(printed - counted) <= last_digit else f"off by {off:+.1%}"


def _places(printed: float) -> int:
    return len(f"{printed:.6g}".partition(".")[2])


@cache
def _cost(backbone: str, pixels: int) -> Cost:
    return cost(backbone, at_pixels(named_config(backbone), pixels))


def totals() -> pd.DataFrame:
    """Every total of the DiffuSSM table against images x MACs."""
    lines = [
        {
            "network": row.printed.method,
            "px": row.printed.resolution,
            "images, M": row.printed.images_m,
            "GMAC per image": row.gmacs,
            "total printed": row.printed.total_gflops,
            "images × GMAC": row.recomputed,
            "verdict": row.verdict,
            "why": row.why,
        }
        for row in audit()
    ]
    notes = [CONVENTION, "Totals leave out the backward pass: DiT's own figure multiplies by 3."]
    forms = {"px": "d", "total printed": ".2e", "images × GMAC": ".2e"}
    return table(pd.DataFrame(lines), "Total Gflops of the DiffuSSM table, recomputed", notes, formats=forms)


def sentences() -> pd.DataFrame:
    """What the abstract and text say in comparison with DiT, and what the paper's own table gives."""
    lines = [{"claim": c.text, "by the table": c.found, "verdict": _holds(c.holds)} for c in claims()]
    frame = published("DiffuSSM")
    score = frame[(frame["metric"] == "is") & (frame["where"] == "main table") & (frame["resolution"] == 256)]
    values = score.set_index("model")["value"]
    for suffix, how in (("", "unguided"), ("-G", "guided")):
        ours, dit = values[f"DiffuSSM-XL{suffix}"], values[f"DiT-XL/2{suffix}"]
        told = f"{ours:.2f} against {dit:.2f}"
        lines.append(
            {"claim": f"better IS than DiT, {how}, 256 px", "by the table": told, "verdict": _holds(ours > dit)}
        )
    return table(pd.DataFrame(lines), "Claims of the DiffuSSM text, held to its own table")


def _holds(holds: bool) -> str:
    return "holds" if holds else "does not hold"


def layer_costs(
    width: int = 1152, ratios: Sequence[int] = (1, 2, 4), pixels: Sequence[int] = (256, 512)
) -> pd.DataFrame:
    """One DiffuSSM layer: the paper's formula, the closed form here, and what torch's counter sees."""
    lines = [_layer_line(width, ratio, side) for side in pixels for ratio in ratios]
    notes = [
        "Formula: 13 (L/M) D² + L D². Counted: dense layers by torch's counter, transforms by 1.25 n log2 n.",
        "Kernel: generating S4D's kernels, once per batch. Attention: 2 D L² in place of the state-space model.",
        CONVENTION,
    ]
    return table(pd.DataFrame(lines), "Cost of one DiffuSSM layer", notes, formats={"L": "d", "M": "d", "D": "d"})


def _layer_line(width: int, ratio: int, pixels: int) -> dict[str, object]:
    side = pixels // 8
    length = side * side
    one, two = (DiffuSSMConfig(size=(side, side), M=ratio, width=width, depth=depth, classes=1000) for depth in (1, 2))
    closed = _less(two.macs(), one.macs())
    modulation = 3 * width**2  # once per image, not per token: no part of the formula
    seen = trace(two).macs.matmul - trace(one).macs.matmul - modulation
    formula = 13 * length * width**2 // ratio + length * width**2
    params = cost("two", two).parameters.total - cost("one", one).parameters.total
    return {
        "L": length,
        "M": ratio,
        "D": width,
        "formula": formula / 1e9,
        "counted": seen / 1e9,
        "verdict": "match" if seen == formula else f"off by {seen / formula - 1:+.2%}",
        "transforms": closed.fft / 1e9,
        "kernel": closed.kernel / 1e9,
        "attention instead": 2 * width * length**2 / 1e9,
        "params, M": params / 1e6,
    }


def _less(two: Macs, one: Macs) -> Macs:
    return Macs(**{part: count - one.parts()[part] for part, count in two.parts().items()})


def resolution_costs() -> pd.DataFrame:
    """GMACs of five XL networks as the image grows, beside what is printed of them."""
    printed = published_points(published()).set_index(["series", "side"])["gmacs"].to_dict()
    frame = closed_forms().rename(columns={"series": "network", "side": "px", "gmacs": "GMAC counted"})
    places = list(zip(frame["network"], frame["px"], strict=True))
    frame["GMAC printed"] = [printed.get(place, math.nan) for place in places]
    frame["verdict"] = [_verdict(printed.get(p), n) for p, n in zip(places, frame["GMAC counted"], strict=True)]
    notes = [
        CONVENTION,
        "The paper's figure of this was not seen: printed are DiT's costs and DiffuSSM's implied ones.",
    ]
    forms = {"px": "d", "tokens": "d", "GMAC counted": ".1f", "GMAC printed": ".1f"}
    return table(frame, "MACs against resolution, five XL networks", notes, formats=forms)


def dis_configurations() -> pd.DataFrame:
    """DiS: blocks, width, parameters and cost; the printed column, what it saw of the network, and all of it."""
    frame = published("DiS")
    printed = frame[frame["where"] == "configuration table"].set_index(["model", "metric"])["value"]
    lines = [_dis_line(size, printed) for size in "SBMLH"]
    notes = [
        "Patch 4, 32 x 32 x 3, no classes. The printed column is recalled, not read; the visible one counts, two "
        "units per MAC, what thop sees: embeddings, long skips and head, none of the state-space blocks.",
        CONVENTION,
    ]
    return table(pd.DataFrame(lines), "DiS configurations", notes, formats={"blocks": "d", "width": "d"})


def _dis_line(size: str, printed: pd.Series) -> dict[str, object]:
    named = named_config(f"dis-{size.lower()}/4")
    assert isinstance(named, DiSConfig)
    config = replace(named, size=(32, 32), channels=3, classes=0, latent_factor=1)
    blocks = 2 * (config.depth // 2) + 1
    gflops = printed[f"DiS-{size}/4", "gmacs"]
    visible = _seen_by_thop(config, blocks) / 1e9
    params = replace(config, P=2)
    return {
        "network": f"DiS-{size}/4",
        "blocks": blocks,
        "width": config.width,
        "params printed, M": printed[f"DiS-{size}/4", "params_m"],
        "params counted at /2, M": cost(f"DiS-{size}/2", params).parameters.total / 1e6,
        "Gflops printed": gflops,
        "Gflops visible": visible,
        "GMAC true": config.macs().total / 1e9,
        "verdict": "the printed column is the visible part" if abs(gflops - visible) <= 0.01 else "unexplained",
    }


def _seen_by_thop(config: DiSConfig, blocks: int) -> int:
    """Modules that are called: patch embedding, the time layers, long skips, and the head on every token."""
    patches = config.size[0] * config.size[1] // config.P**2
    tokens, D = patches + 1, config.width
    patch = config.channels * config.P**2
    macs = patches * patch * D + 8 * D**2 + blocks // 2 * 2 * D**2 * tokens + tokens * D * 2 * patch
    return 2 * macs
