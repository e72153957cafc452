"""Cost against length: fitted exponents, and the crossover between two, measured beside what MACs predict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from models.denoiser import require
from study.atomic import write_file
from study.bench.config import Cell, Layer, Network, Protocol, spelled
from study.bench.plots import draw_scaling
from study.bench.rows import MS, Measured, lines_of
from study.bench.schedule import Tell
from study.bench.store import save
from study.bench.suite import run_suite
from study.stats import Floats, Interval, power_law

TAIL = 3  # the longest lengths whose slope is told apart: what small ones cost is overhead


@dataclass(frozen=True)
class Crossing:
    """Where the first of two becomes the dearer one; NaN where it does not in what was measured."""

    at: float
    interval: Interval


def scaling(
    names: Sequence[str], sides: Sequence[int], plain: Cell, protocol: Protocol, folder: Path, tell: Tell
) -> list[str]:
    """Networks on inputs of growing side; series and times also go to `resolution.csv`."""
    check_axis("side", sides)
    series = [[Network(name, (side, side)) for side in sides] for name in names]
    for name in names:
        spelled(name)
    cells = [replace(plain, subject=one[i]) for i in range(len(sides)) for one in series]
    found = run_suite(cells, protocol, False, tell, lambda part: save(folder, part, protocol))
    frame = times_frame(found, protocol, "side", {each.cell.id: _side(each) for each in found})
    keep(
        folder / ("resolution.csv" if plain.mode == "forward" else "resolution-train.csv"),
        frame.rename(columns={"at": "side"}),
    )
    return told(frame, "side", f"scaling-{plain.mode}", folder)


def lengths(
    forms: Sequence[str],
    counts: Sequence[int],
    layer: tuple[int, int, str],
    plain: Cell,
    protocol: Protocol,
    folder: Path,
    tell: Tell,
) -> list[str]:
    """Layers on sequences of growing length."""
    check_axis("length", counts)
    width, state, join = layer
    made = {form: [Layer(form, count, width, state, join) for count in counts] for form in forms}
    cells = [replace(plain, subject=made[form][i]) for i in range(len(counts)) for form in forms]
    found = run_suite(cells, protocol, False, tell, lambda part: save(folder, part, protocol))
    frame = times_frame(found, protocol, "length", {each.cell.id: _length(each) for each in found})
    keep(folder / f"lengths-{plain.mode}.csv", frame.rename(columns={"at": "length"}))
    return told(frame, "length", f"lengths-{plain.mode}", folder)


def check_axis(name: str, values: Sequence[int]) -> None:
    valid = len(set(values)) == len(values) >= TAIL and all(value > 0 for value in values)
    require(valid, name, list(values), f"{TAIL} or more distinct positive integers")


def _side(measured: Measured) -> int:
    assert isinstance(measured.cell.subject, Network)
    return measured.cell.subject.size[0]


def _length(measured: Measured) -> int:
    assert isinstance(measured.cell.subject, Layer)
    return measured.cell.subject.length


def times_frame(found: Sequence[Measured], protocol: Protocol, axis: str, at: dict[str, int]) -> pd.DataFrame:
    """series, at, ms per image with its interval, gmacs, ratio to the baseline with its interval, device."""
    lines = []
    for each in found:
        line = next(iter(lines_of(each, protocol)))
        summary, ratio, macs = line.reported, line.ratio, each.cell.subject.macs()
        if summary is None:
            continue
        ms, low, high = (seconds * MS / each.cell.batch for seconds in (summary.median, *summary.interval))
        device = each.facts.get("device", "cpu")
        lines.append(
            {
                "series": each.cell.subject.name,
                "at": at[each.cell.id],
                "ms": ms,
                "low": low,
                "high": high,
                "gmacs": math.nan if macs is None else macs.total / 1e9,
                "ratio": ratio.value if ratio else math.nan,
                "ratio_low": ratio.interval[0] if ratio else math.nan,
                "ratio_high": ratio.interval[1] if ratio else math.nan,
                "device": f"{each.facts.get('cpu', 'cpu')}, {each.cell.threads} thread" if device == "cpu" else device,
            }
        )
    require(bool(lines), axis, "all of them", "such that some cell is not rejected: is the machine busy?")
    return pd.DataFrame(lines).sort_values(["series", "at"], kind="stable", ignore_index=True)


def keep(file: Path, frame: pd.DataFrame) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, lambda path: frame.to_csv(path, index=False, float_format="%.6g"))


def told(frame: pd.DataFrame, axis: str, name: str, folder: Path) -> list[str]:
    """Sentences: each series' exponents, each pair's crossover; and the figure beside the numbers."""
    names = list(dict.fromkeys(frame["series"]))
    lines = [sentence for series in names for sentence in exponents(frame[frame["series"] == series], series, axis)]
    baseline = next((series for series in names if frame.loc[frame["series"] == series, "ratio"].isna().all()), None)
    if baseline is not None:
        lines += [crossover_words(frame, baseline, other, axis) for other in names if other != baseline]
    write_file(folder / f"{name}.png", lambda path: draw_scaling(frame, axis, path))
    write_file(folder / f"{name}.txt", lambda path: path.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    return lines


def exponents(series: pd.DataFrame, name: str, axis: str) -> list[str]:
    """Over everything, and over the longest, of time and of MACs."""
    lines = []
    for label, part in ((f"all {len(series)}", series), (f"the largest {TAIL}", series.sort_values("at").tail(TAIL))):
        if len(part) < TAIL:
            return [f"{name}: {len(part)} {axis}s are believable, too few for an exponent"]
        law, paper = (power_law(part["at"], part[column]) for column in ("ms", "gmacs"))
        low, high = law.exponent_interval
        span = f"{axis} {part['at'].min()}..{part['at'].max()} ({label})"
        lines.append(f"{name}: time ~ {axis}^{law.exponent:.2f} [{low:.2f}, {high:.2f}], "
                     f"MACs ~ {axis}^{paper.exponent:.2f}, over {span}")  # fmt: skip
    return lines


def crossover_words(frame: pd.DataFrame, baseline: str, other: str, axis: str) -> str:
    """Where `other` and the baseline cost the same, by the clock and by MACs."""
    ours = frame[frame["series"] == other].dropna(subset=["ratio"]).sort_values("at")
    base = frame[frame["series"] == baseline].set_index("at")
    ours = ours[ours["at"].isin(base.index)]
    if len(ours) < 2:
        return f"{other} and {baseline}: too few believable {axis}s in common for a crossover"
    at = ours["at"].to_numpy(float)
    paper = ours["gmacs"].to_numpy(float) / base.loc[ours["at"], "gmacs"].to_numpy(float)
    measured = crossing(at, *(ours[name].to_numpy(float) for name in ("ratio", "ratio_low", "ratio_high")))
    if np.allclose(paper, 1, rtol=1e-12):
        return f"{other} costs what {baseline} costs at {axis} {_where(measured, at)} measured; their MACs are the same"
    predicted = _where(crossing(at, paper, paper, paper), at)
    return f"{other} costs what {baseline} costs at {axis} {_where(measured, at)} measured, {predicted} by MACs"


def crossing(
    at: Floats,
    ratio: Floats,
    low: Floats,
    high: Floats,
) -> Crossing:
    """The last place where the ratio passes 1, between lengths a power law; its interval by the ratio's ends."""
    places = [_root(at, values) for values in (ratio, low, high)]
    ends = [place for place in places[1:] if not math.isnan(place)]
    return Crossing(places[0], (min(ends), max(ends)) if len(ends) == 2 else (math.nan, math.nan))


def _root(at: Floats, ratio: Floats) -> float:
    x, y = np.log(at), np.log(ratio)
    turns = np.nonzero(np.sign(y[1:]) * np.sign(y[:-1]) < 0)[0]
    exact = np.nonzero(y == 0)[0]
    if not len(turns):
        return float(at[exact[-1]]) if len(exact) else math.nan
    i = int(turns[-1])
    return float(np.exp(x[i] - y[i] * (x[i + 1] - x[i]) / (y[i + 1] - y[i])))


def _where(found: Crossing, at: Floats) -> str:
    """With the interval, or that these lengths do not close it: then it may as well be beyond them."""
    if math.isnan(found.at):
        return f"nowhere from {at.min():g} to {at.max():g}"
    low, high = found.interval
    if low == high:
        return f"{found.at:.3g}"
    return f"{found.at:.3g} " + ("[interval not closed]" if math.isnan(low) else f"[{low:.3g}, {high:.3g}]")
