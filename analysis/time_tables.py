"""Measured times as tables, every number with its interval and n: networks, layers by length, S4D's fast form."""

from __future__ import annotations

import math

import pandas as pd

from analysis.render import NOTHING, table
from study.bench.record import RATIOS
from study.bench.scaling import crossover_words, exponents

STEMS = {"latency": "latency", "train_step": "training step", "sample": "sample"}


def span(value: float, low: float, high: float) -> str:
    """A number with its 95 % interval; a dash where there is none."""
    if math.isnan(value):
        return NOTHING
    return f"{value:.4g} [{low:.4g}, {high:.4g}]"


class Cell:
    """The rows of one measured cell, by metric."""

    def __init__(self, rows: pd.DataFrame) -> None:
        self.rows = rows.set_index("metric")

    def span(self, metric: str) -> str:
        return span(*(self.number(metric, column) for column in ("value", "low", "high")))

    def number(self, metric: str, column: str = "value") -> float:
        return float(self.rows[column].get(metric, math.nan))

    def told(self, name: str) -> str:
        return str(self.rows[name].iloc[0])

    @property
    def gmacs(self) -> float:
        return self.number("gmacs" if "gmacs" in self.rows.index else "gmacs_per_image")

    @property
    def stem(self) -> str:
        """Which of the quantities was measured; also where it was rejected."""
        return next(stem for stem in STEMS if any(str(metric).startswith(stem) for metric in self.rows.index))


def measured_networks(cells: pd.DataFrame) -> pd.DataFrame:
    """Latency, training step and sample of every network of one machine, beside what MACs predict of the ratio."""
    found = [Cell(rows) for _, rows in networks(cells).groupby("cell", sort=False)]
    lines = []
    for cell in sorted(found, key=_place):
        same = (each for each in found if _place(each)[:-2] == _place(cell)[:-2])
        base = next((each for each in same if each.told("subject") == cell.told("baseline")), None)
        name, rejected = cell.stem, cell.number(f"{cell.stem}_rejected_spread")
        lines.append({
            "network": cell.told("subject"),
            "input": cell.told("shape"),
            "batch": cell.told("batch"),
            "threads": cell.told("threads"),
            "dtype": cell.told("dtype") + (" compiled" if cell.told("compile") == "True" else ""),
            "quantity": STEMS[name],
            "ms [95 %]": f"rejected, IQR {rejected:.0%}" if rejected > 0 else cell.span(f"{name}_ms"),
            "IQR": cell.number(f"{name}_iqr_ms"),
            "p95": cell.number(f"{name}_p95_ms"),
            "n": int(cell.rows["n"].max()),
            "ratio [95 %]": cell.span(f"{name}_ratio"),
            "by MACs": cell.gmacs / base.gmacs if base else math.nan,
            "mfu": cell.number(f"{name}_mfu"),
            "MiB": _memory(cell),
        })  # fmt: skip
    notes = [
        "ms: median with its 95 % interval over processes, of the whole batch. Ratio: to the first network of the same "
        "input, batch and quantity, timed in turns with it. By MACs: what the ratio would be if MACs were all.",
        "mfu: 2 MACs per second over what a matrix product reaches on the same threads. "
        "MiB: peak, on a CPU how far the process grew.",
    ]
    return table(pd.DataFrame(lines), "Networks as timed", notes, formats={"mfu": ".1%", "MiB": ".0f"})


def networks(cells: pd.DataFrame) -> pd.DataFrame:
    """Those that were trained as well: others belong to a series over the side of the input."""
    at = cells["subject"] + cells["shape"] + cells["threads"]
    return cells[cells["shape"].str.contains(r"^\d+x\d+$") & at.isin(at[cells["mode"] == "train"])]


def _place(cell: Cell) -> tuple[object, ...]:
    at = [cell.told(name) for name in ("dtype", "compile", "mode")]
    side, batch = int(cell.told("shape").partition("x")[0]), int(cell.told("batch"))
    ms = cell.number(f"{cell.stem}_ms")
    return (
        side,
        *at,
        batch,
        int(cell.told("threads")),
        cell.told("baseline") != "",
        math.inf if math.isnan(ms) else ms,
    )


def _memory(cell: Cell) -> float:
    allocated = cell.number("allocated_peak_mib")
    return cell.number("growth_mib") if math.isnan(allocated) else allocated


def measured_lengths(lengths: pd.DataFrame) -> pd.DataFrame:
    """ms of each mixer by length, the ratio to the first beside it; under it exponents and crossovers in words."""
    lines = []
    first = lengths["ratio"].isna() if "ratio" in lengths else lengths["length"] < 0
    for length, group in pd.concat([lengths[first], lengths[~first]]).groupby("length"):
        line: dict[str, object] = {"length": int(str(length))}
        for own in group.to_dict("records"):
            ratio = span(*(own.get(name, math.nan) for name in ("ratio", "ratio_low", "ratio_high")))
            line[f"{own['series']}, ms [95 %]"] = span(own["ms"], own["low"], own["high"])
            line |= {} if ratio == NOTHING else {f"{own['series']}, ratio [95 %]": ratio}
        lines.append(line)
    return table(pd.DataFrame(lines), "Sequence mixers by length", scaling_words(lengths, "length"))


def measured_sides(times: pd.DataFrame) -> pd.DataFrame:
    """The same of networks by the side of their input."""
    named = times.rename(columns={"side": "length"})
    made = measured_lengths(named).rename(columns={"length": "side"})
    return table(made, "Networks by the side of their input", scaling_words(named, "side"))


def scaling_words(frame: pd.DataFrame, axis: str) -> list[str]:
    """Fitted exponents beside those of MACs, and where one overtakes another, measured and by MACs."""
    if frame.empty:
        return []
    placed = frame.rename(columns={"length": "at"})
    names = list(dict.fromkeys(placed["series"]))
    words = [word for name in names for word in exponents(placed[placed["series"] == name], name, axis)]
    if "ratio" not in placed:
        return words
    first = next(name for name in names if placed.loc[placed["series"] == name, "ratio"].isna().all())
    return words + [crossover_words(placed, first, name, axis) for name in names if name != first]


def measured_ratios(cells: pd.DataFrame) -> pd.DataFrame:
    """Textbook over fast S4D core, forward and backward: the ratio, that of CPU time, and what was aimed at."""
    textbook = cells[(cells["subject"] == "s4d-textbook") & (cells["mode"] == "train")]
    found = {(cell.told("shape"), cell.told("batch")): cell
             for cell in (Cell(rows) for _, rows in textbook.groupby("cell", sort=False))}  # fmt: skip
    lines = []
    for join, L, D, N, batch, aim in RATIOS:
        cell = found.get((f"L={L} D={D} N={N} {join}", str(batch)))
        if cell is None:
            continue
        ratio = cell.number("train_step_cpu_ratio", "high")
        lines.append({
            "join": join, "L": L, "D": D, "N": N, "batch": batch,
            "ratio [95 %]": cell.span("train_step_ratio"),
            "CPU time [95 %]": cell.span("train_step_cpu_ratio"),
            "n": int(cell.rows["n"].max()),
            "aim": aim,
            "aim is": _judged(cell, aim) if not math.isnan(ratio) else "not judged",
        })  # fmt: skip
    note = (
        "The core held as (B, L, H): kernel generation and bidirectional convolution. An aim is missed or surpassed "
        "when the interval of the CPU-time ratio lies below or above it."
    )
    return table(pd.DataFrame(lines), "S4D core, textbook form over ours, forward and backward", [note])


def _judged(cell: Cell, aim: float) -> str:
    low, high = (cell.number("train_step_cpu_ratio", end) for end in ("low", "high"))
    return "surpassed" if low > aim else "missed" if high < aim else "within the interval"


def provenance(cells: pd.DataFrame) -> str:
    """On what, by which versions, at which commits and by which protocols the cells were measured."""
    told = {name: ", ".join(sorted({value for value in cells[name] if value})) for name in ("cpu", "device", "torch")}
    commits = ", ".join(sorted({commit[:12] for commit in cells["commit"] if commit}))
    protocols = ", ".join(sorted(set(cells["protocol"])))
    return f"{told['cpu']}; device {told['device']}; torch {told['torch']}; commits {commits}; protocols {protocols}"
