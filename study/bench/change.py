"""Whether a change is faster: two checkouts timed in turns, or two folders of results. A report, never a gate.

A cell is called faster or slower only when its intervals of time and of CPU time agree, each at a level so high
that no cell of the whole report is called so by chance in 95 % of reports.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from models.denoiser import require
from study.bench.checkout import Checkout
from study.bench.compare import CPU, WALL, WHOLE, Ratio, paired_ratio, summarise, unpaired_ratio
from study.bench.config import Cell, Protocol
from study.bench.schedule import Taken, Tell, measure
from study.bench.store import read_cell, read_machine, read_samples
from study.results import read_rows
from study.stats import LEVEL
from study.strict import from_tree

SAME = ("cpu", "device", "threads", "allocator")  # facts without which times cannot be compared
WIDE = 0.10  # reach of an interval to either side above which it is no answer that it holds zero


@dataclass(frozen=True)
class Change:
    """Time after over time before of one cell; None where samples spread too far for a ratio."""

    cell: Cell
    time: Ratio | None
    other: Ratio | None  # CPU time; on a GPU the wall's clock
    n: tuple[int, int]
    processes: int
    doubt: str = ""

    @property
    def verdict(self) -> str:
        """faster, slower, no difference told, or no answer."""
        if self.time is None or self.other is None:
            return f"no answer, {self.doubt}"
        if self.time.told != self.other.told:
            return "no answer, the two clocks disagree"
        if self.time.told != "not told apart":
            return self.time.told
        reach = max(self.time.interval[1] / self.time.value, self.time.value / self.time.interval[0]) - 1
        return "no answer, the interval is too wide" if reach > WIDE else "no difference told"

    def __str__(self) -> str:
        subject, clock = self.cell.subject, "CPU time" if self.cell.device == "cpu" else "wall clock"
        words = f"{subject.name} {subject.shape} {self.cell.mode} batch {self.cell.batch}: {self.verdict}"
        for name, ratio in (("time", self.time), (clock, self.other)):
            words += f", {name} {percent(ratio)}" if ratio else ""
        return f"{words}; n {self.n[0]} and {self.n[1]} in {self.processes} processes each"

    def as_tree(self) -> dict[str, Any]:
        ratios = {"time": self.time, "cpu_or_wall": self.other}
        found = {name: ratio and {"value": ratio.value, "interval": ratio.interval} for name, ratio in ratios.items()}
        named = {"subject": self.cell.subject.name, "mode": self.cell.mode, "batch": self.cell.batch}
        return {"cell": self.cell.id, **named, "verdict": self.verdict, **found, "n": self.n}


def percent(ratio: Ratio) -> str:
    low, high = ratio.interval
    return f"{ratio.value - 1:+.1%} [{low - 1:+.1%}, {high - 1:+.1%}]"


def level_of(cells: int) -> float:
    """Of each cell, so that all intervals hold together in 95 % of reports (Bonferroni)."""
    return 1 - (1 - LEVEL) / cells


def compare_checkouts(
    before: Path, after: Path, cells: Sequence[Cell], protocol: Protocol, tell: Tell = lambda words: None
) -> Iterator[Change]:
    """Each cell by both codes, in processes that are alive together and take turns."""
    with ExitStack() as stack:
        codes = {name: stack.enter_context(Checkout(folder, cells[0].threads))
                 for name, folder in (("before", before), ("after", after))}  # fmt: skip
        for cell in cells:
            found = measure({name: partial(code.start, cell) for name, code in codes.items()}, protocol, tell)
            for name, outcome in found.items():
                require(
                    not outcome.out_of_memory, name, cell.subject.name, f"a cell that fits: {outcome.out_of_memory}"
                )
            sides = found["before"].taken, found["after"].taken
            yield changed(cell, *sides, protocol, partial(paired_ratio, seed=protocol.seed, level=level_of(len(cells))))


def compare_folders(before: Path, after: Path) -> Iterator[Change]:
    """Every cell that both have. Their intervals are widened by what the machine itself changed in between."""
    sides = [read_samples(folder) for folder in (before, after)]
    shared = [identity for identity in sides[0] if identity in sides[1]]
    require(bool(shared), "results", str(after), f"a folder that shares a cell with {before}")
    protocol = from_tree(Protocol, read_machine(before)["protocol"], "protocol")
    for identity in shared:
        origins = [_origin(folder, identity) for folder in (before, after)]
        for key in SAME:
            theirs = [origin.get(key) for origin in origins]
            require(theirs[0] == theirs[1], key, theirs[1], f"{theirs[0]!r}, as in {before}: times of one machine")
        ratio = partial(_apart, drift=_drift(origins), seed=protocol.seed, level=level_of(len(shared)))
        yield changed(read_cell(before, identity), sides[0][identity], sides[1][identity], protocol, ratio)


def _apart(after: Sequence[Taken], before: Sequence[Taken], phase: int, drift: float, **how: Any) -> Ratio:
    ratio = unpaired_ratio(after, before, phase, **how)
    low, high = ratio.interval
    return Ratio(ratio.value, (low / drift, high * drift))


def _origin(folder: Path, identity: str) -> dict[str, str]:
    rows = read_rows(folder / "runs" / identity / "rows.jsonl")
    require(bool(rows), "results", str(folder), f"complete: no rows of cell {identity}")
    return dict(rows[0].provenance)


def _drift(origins: Sequence[dict[str, str]]) -> float:
    """How far apart the machine's own peaks were, as a factor of 1 or more: so far it was another machine."""
    peaks = [float(origin.get("peak_gflops", math.nan)) for origin in origins]
    factor = peaks[1] / peaks[0]
    return max(factor, 1 / factor) if math.isfinite(factor) else 1.0


def changed(
    cell: Cell,
    before: Sequence[Taken],
    after: Sequence[Taken],
    protocol: Protocol,
    ratio: Callable[[Sequence[Taken], Sequence[Taken], int], Ratio],
) -> Change:
    n, processes = (len(before), len(after)), 1 + max(each.repeat for each in before)
    for label, taken in (("before", before), ("after", after)):
        found = summarise(taken, WHOLE, protocol)
        if found.verdict == "rejected":
            doubt = f"the samples {label} spread too far (IQR {found.spread:.0%} of the median)"
            return Change(cell, None, None, n, processes, doubt)
    other = CPU if cell.device == "cpu" else WALL
    return Change(cell, ratio(after, before, WHOLE), ratio(after, before, other), n, processes)
