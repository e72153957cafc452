"""Measured cells as rows of results: what was timed, what that makes of it, and what was refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from study.bench.compare import CPU, WALL, WHOLE, Ratio, Summary, paired_ratio, summarise
from study.bench.config import Cell, Protocol
from study.bench.peaks import FLOPS_PER_MAC, Peaks
from study.bench.schedule import Outcome
from study.bench.workload import phases_of
from study.results import Row
from study.strict import to_tree

STEM = {"forward": "latency", "train": "train_step", "sample": "sample"}
THROUGHPUT = {"forward": "throughput", "train": "train_throughput"}
OUT_OF_MEMORY = "out_of_memory"
MS = 1e3


@dataclass
class Measured:
    """One cell with everything that was seen of it."""

    cell: Cell
    outcome: Outcome
    baseline: Measured | None = None  # None: it is the baseline
    memory: Mapping[str, Any] = field(default_factory=dict)
    energy: Mapping[str, Any] = field(default_factory=dict)
    peaks: Peaks | None = None
    common: bool = False  # at the largest batch that every subject of its group fits

    @property
    def facts(self) -> dict[str, str]:
        return dict(self.outcome.opened[0]["facts"]) if self.outcome.opened else {}

    @property
    def stable(self) -> bool:
        return all(each["warm_up"]["stable"] for each in self.outcome.opened)


@dataclass(frozen=True)
class Line:
    """One phase of one cell, or the whole of it: a line of the table. None where there is no such number."""

    measured: Measured
    phase: str  # "" is the whole
    summary: Summary | None
    ratio: Ratio | None
    cpu_ratio: Ratio | None

    @property
    def metric(self) -> str:
        return f"train_{self.phase}" if self.phase else STEM[self.measured.cell.mode]

    @property
    def images_per_second(self) -> float | None:
        return None if self.phase or not self.reported else self.measured.cell.batch / self.reported.median

    @property
    def reported(self) -> Summary | None:
        return None if self.summary is None or self.summary.verdict == "rejected" else self.summary

    @property
    def mfu(self) -> float | None:
        """Share of the measured matrix-multiplication rate that the model's own MACs make up."""
        gmacs, peaks = self.measured.cell.gmacs(), self.measured.peaks
        if self.phase or gmacs is None or peaks is None or self.reported is None:
            return None
        return FLOPS_PER_MAC * gmacs / self.reported.median / peaks.gflops

    @property
    def note(self) -> str:
        if self.measured.outcome.out_of_memory:
            return "out of memory"
        assert self.summary is not None
        words = [f"{self.summary.verdict}: IQR {self.summary.spread:.0%} of the median"] * bool(self.summary.verdict)
        return "; ".join(words + ["warm-up not stable"] * (not self.measured.stable))


def lines_of(measured: Measured, protocol: Protocol) -> Iterator[Line]:
    """The whole first, then its phases if it has several."""
    if measured.outcome.out_of_memory:
        yield Line(measured, "", None, None, None)
        return
    names = phases_of(measured.cell)
    numbers = {"": WHOLE} | (dict(zip(names, range(len(names)), strict=True)) if len(names) > 1 else {})
    for name, number in numbers.items():
        summary = summarise(measured.outcome.taken, number, protocol)
        ratio = _ratio(measured, number, protocol)
        on_cpu = measured.cell.device == "cpu" and not name
        yield Line(measured, name, summary, ratio, _ratio(measured, CPU, protocol) if on_cpu else None)


def _ratio(measured: Measured, number: int, protocol: Protocol) -> Ratio | None:
    """None for the baseline itself, and where either side is not to be believed."""
    base = measured.baseline
    if base is None or base.outcome.out_of_memory:
        return None
    sides = (measured.outcome.taken, base.outcome.taken)
    if any(summarise(side, number, protocol).verdict == "rejected" for side in sides):
        return None
    return paired_ratio(*sides, number, protocol.seed)


def rows_of(lines: Sequence[Line], protocol: Protocol) -> list[Row]:
    """Every number of one cell. A rejected time leaves its spread alone, an allocation that failed says so."""
    measured = lines[0].measured
    origin = provenance_of(measured)

    def row(metric: str, value: float, units: str, n: int = 1, interval: tuple[float, float] | None = None) -> Row:
        return Row(
            run=measured.cell.id,
            metric=metric,
            value=value,
            units=units,
            n=n,
            interval=interval,
            protocol=protocol.name,
            provenance=origin,
        )

    if measured.outcome.out_of_memory:
        return [row(OUT_OF_MEMORY, 1, "")]
    numbers = [number for line in lines for number in _timed(line)] + list(_derived(lines[0], protocol))
    return [row(*number) for number in numbers]


Number = tuple[str, float, str, int, tuple[float, float] | None]


def _timed(line: Line) -> Iterator[Number]:
    summary, metric = line.summary, line.metric
    assert summary is not None
    n = summary.n
    if line.reported is None:
        yield f"{metric}_rejected_spread", summary.spread, "", n, None
        return
    interval = (summary.interval[0] * MS, summary.interval[1] * MS)
    yield f"{metric}_ms", summary.median * MS, "ms", n, interval if interval[1] < float("inf") else None
    yield f"{metric}_iqr_ms", (summary.high_quartile - summary.low_quartile) * MS, "ms", n, None
    yield f"{metric}_p95_ms", summary.p95 * MS, "ms", n, None
    for name, ratio in (("ratio", line.ratio), ("cpu_ratio", line.cpu_ratio)):
        if ratio is not None:
            yield f"{metric}_{name}", ratio.value, "", n, ratio.interval


def _derived(line: Line, protocol: Protocol) -> Iterator[Number]:
    """What follows from the whole's median, and what other passes saw."""
    measured, metric = line.measured, line.metric
    cell, taken = measured.cell, measured.outcome.taken
    other, clock = ("cpu", CPU) if cell.device == "cpu" else ("wall", WALL)
    if line.reported is not None:
        summary = summarise(taken, clock, protocol)
        yield f"{metric}_{other}_ms", summary.median * MS, "ms", summary.n, None
        if measured.common and line.images_per_second is not None and cell.mode in THROUGHPUT:
            yield THROUGHPUT[cell.mode], line.images_per_second, "images/s", summary.n, None
        if line.mfu is not None:
            yield f"{metric}_mfu", line.mfu, "", summary.n, None
    macs = cell.subject.macs()
    if macs is not None:
        # A rate is GMACs per millisecond of one image: only there do they belong together in one file.
        alone = cell.mode == "forward" and cell.batch == 1
        yield "gmacs" if alone else "gmacs_per_image", macs.total / 1e9, "GMAC/image", 1, None
    first = [each["warm_up"]["first"] * MS for each in measured.outcome.opened]
    yield "first_call_ms", sum(first) / len(first), "ms", len(first), None
    for name, value in measured.memory.items():
        yield name, value, "MiB", 1, None
    if "joules_per_call" in measured.energy:
        yield "joules_per_call", measured.energy["joules_per_call"], "J", measured.energy["calls"], None


def provenance_of(measured: Measured) -> dict[str, str]:
    cell = measured.cell
    settings = {key: str(value) for key, value in to_tree(cell).items() if key != "subject"}
    names = {"subject": cell.subject.name, "shape": cell.subject.shape}
    if measured.baseline is not None:
        names["baseline"] = measured.baseline.cell.subject.name
    if measured.peaks is not None:
        names["peak_gflops"] = f"{measured.peaks.gflops:.4g}"
        names["peak_copy_gb_per_s"] = f"{measured.peaks.copy_gb:.4g}"
    return {**settings, **measured.facts, **names}  # a GPU by its name, not as cuda
