"""From cells to measurements: groups, passes of their own for memory and peaks, and the largest common batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
    """Time every group of cells; `done` hears of each group as it ends, so that nothing measured is lost, and with
    the last group of a table of the whole table: its largest common batch is known then."""
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    peaks = _peaks(cells, protocol)
    left = Counter(table_of(members[0]) for members in groups.values())
    everything: list[Measured] = []
    for number, members in enumerate(groups.values(), start=1):
        words = f"{number}/{len(groups)} {members[0].subject.shape} {members[0].mode} batch {members[0].batch}"
        found = run_group(members, protocol, partial(_told, tell, words))
        for each in found:
            each.peaks = peaks.get(each.cell.dtype)
            if memory:
                each.memory, each.energy = _resources(each.cell, each.outcome.out_of_memory)
        everything += found
        table = table_of(members[0])
        left[table] -= 1
        if not left[table]:
            found = [each for each in everything if table_of(each.cell) == table]
            mark_common(found)
        done(found)
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
    """Find the largest batch that every subject of this table fits: throughput is told at that one."""
    fitting = {each.cell.id: not each.outcome.out_of_memory for each in measured}
    batch = common_batch([each.cell for each in measured], fitting)
    for each in measured:
        each.common = each.cell.batch == batch


def common_batch(cells: Sequence[Cell], fits: Mapping[str, bool]) -> int | None:
    """Of one table; None if there is no batch at which every cell fits."""
    lost = {cell.batch for cell in cells if not fits[cell.id]}
    return max({cell.batch for cell in cells} - lost, default=None)


def table_of(cell: Cell) -> tuple[object, ...]:
    """What cells have in common that are compared, at whatever batch."""
    return replace(cell, batch=1).group
