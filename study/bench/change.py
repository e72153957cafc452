"""Whether a change is faster: two folders of results, cell by cell. A report, never a gate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from models.denoiser import require
from study.bench.compare import WHOLE, Ratio, summarise, unpaired_ratio
from study.bench.config import Cell, Protocol
from study.bench.schedule import Taken
from study.bench.store import read_cell, read_machine, read_samples
from study.strict import from_tree

SAME = ("cpu", "device", "threads", "allocator")  # facts without which times cannot be compared


def compare_folders(before: Path, after: Path) -> Iterator[str]:
    """A sentence per cell that both have; the interval knows of no drift between the two measurements."""
    sides = [read_samples(folder) for folder in (before, after)]
    machines = [read_machine(folder) for folder in (before, after)]
    for key in SAME:
        theirs = [machine["provenance"].get(key) for machine in machines]
        require(theirs[0] == theirs[1], key, theirs[1], f"{theirs[0]!r}, as in {before}: times of one machine")
    protocol = from_tree(Protocol, machines[0]["protocol"], "protocol")
    shared = [identity for identity in sides[0] if identity in sides[1]]
    require(bool(shared), "results", str(after), f"a folder that shares a cell with {before}")
    for identity in shared:
        yield sentence(read_cell(before, identity), sides[0][identity], sides[1][identity], protocol)
    commits = [str(machine["provenance"].get("commit"))[:12] for machine in machines]
    yield f"{commits[0]} to {commits[1]}; measured apart, so drift of the machine counts as change."


def sentence(cell: Cell, before: list[Taken], after: list[Taken], protocol: Protocol) -> str:
    subject = cell.subject
    name = f"{subject.name} {subject.shape} {cell.mode} batch {cell.batch}"
    for label, taken in (("before", before), ("after", after)):
        found = summarise(taken, WHOLE, protocol)
        if found.verdict == "rejected":
            return f"{name}: no answer, the samples {label} spread too far (IQR {found.spread:.0%} of the median)"
    return f"{name}: {in_words(unpaired_ratio(after, before, WHOLE, protocol.seed))}"


def in_words(ratio: Ratio) -> str:
    """Percent of time saved or lost; a change that is within noise is not called one."""
    low, high = ratio.interval
    change = f"time {ratio.value - 1:+.1%} [{low - 1:+.1%}, {high - 1:+.1%}]"
    verdict = {"faster": "faster", "slower": "slower", "not told apart": "no difference told"}[ratio.told]
    return f"{verdict}, {change}"
