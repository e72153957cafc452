"""From cells to measurements: groups, passes of their own for memory and peaks, and the largest common batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from study.bench.config import Cell, Protocol
from study.bench.peaks import Peaks
from study.bench.process import CellProcess, DoesNotFitError, ask_alone
from study.bench.rows import Measured
from study.bench.schedule import Tell, measure

ENERGY_SECONDS = 10.0
LEAST_WARM_UP = 1.0  # seconds allowed


def run_suite(
    cells: Sequence[Cell], protocol: Protocol, memory: bool, tell: Tell, done: Callable[[list[Measured]], object]
) -> list[Measured]:
    """Time every group of cells; `done` hears of each group as it ends, so that nothing measured is lost."""
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    peaks = _peaks(cells, protocol)
    everything: list[Measured] = []
    for number, members in enumerate(groups.values(), start=1):
        words = f"{number}/{len(groups)} {members[0].subject.shape} {members[0].mode} batch {members[0].batch}"
        found = run_group(members, protocol, partial(_told, tell, words))
        for each in found:
            each.peaks = peaks.get(each.cell.dtype)
            if memory:
                each.memory, each.energy = _resources(each.cell, each.outcome.out_of_memory)
        everything += found
        done(found)
    mark_common(everything)
    return everything


def _told(tell: Tell, about: str, words: str) -> None:
    tell(f"{about}: {words}")


def run_group(members: Sequence[Cell], protocol: Protocol, tell: Tell) -> list[Measured]:
    """The first cell is the baseline of the others."""
    longest = max(LEAST_WARM_UP, protocol.min_seconds)
    starts = {cell.id: partial(CellProcess, cell, longest) for cell in members}
    outcomes = measure(starts, protocol, tell)
    measured = [Measured(cell, outcomes[cell.id]) for cell in members]
    for each in measured[1:]:
        each.baseline = measured[0]
    return measured


def _peaks(cells: Sequence[Cell], protocol: Protocol) -> dict[str, Peaks]:
    """What the device can do, per precision."""
    first = {cell.dtype: cell for cell in reversed(cells)}
    seconds = min(1.0, max(0.1, protocol.min_seconds / 3))
    return {dtype: Peaks(**ask_alone(cell, "peak", seconds=seconds)) for dtype, cell in first.items()}


def _resources(cell: Cell, out_of_memory: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Memory in one fresh process, energy in another: both alone on the machine."""
    if out_of_memory:
        return {}, {}
    try:
        memory = ask_alone(cell, "memory")
        if cell.device == "cpu":
            return memory, {}
        with CellProcess(cell) as process:
            process.open()
            return memory, process.ask("energy", seconds=ENERGY_SECONDS)
    except DoesNotFitError:
        return {}, {}


def mark_common(measured: Sequence[Measured]) -> None:
    """Find the largest batch that every subject of a table fits: throughput is told at that one."""
    tables: dict[tuple[object, ...], list[Measured]] = {}
    for each in measured:
        tables.setdefault(replace(each.cell, batch=1).group, []).append(each)
    for members in tables.values():
        lost = {each.cell.batch for each in members if each.outcome.out_of_memory}
        fits = {each.cell.batch for each in members} - lost
        for each in members:
            each.common = bool(fits) and each.cell.batch == max(fits)
