"""In which order things are timed: cells of a group take turns, block by block, in a shuffled order.

Drift and heat then fall on all of them alike, and the blocks of one round pair up.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from typing import Protocol as Interface

from study.bench.config import Protocol
from study.bench.process import DoesNotFitError
from study.bench.timing import Sample


class Timed(Interface):
    """A process that times one cell; in tests, anything that passes for one."""

    def open(self) -> dict[str, Any]: ...
    def block(self, samples: int, seconds: float) -> list[Sample]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Taken:
    """One sample and where it stands: which process, which round, which turn in that round."""

    repeat: int
    block: int
    turn: int
    sample: Sample


@dataclass
class Outcome:
    """All that was seen of one cell."""

    taken: list[Taken] = field(default_factory=list)
    opened: list[dict[str, Any]] = field(default_factory=list)  # one per process
    out_of_memory: str = ""


Start = Callable[[], Timed]
Tell = Callable[[str], object]


def measure(cells: Mapping[str, Start], protocol: Protocol, tell: Tell = lambda words: None) -> dict[str, Outcome]:
    """Time the cells of one group. One that runs out of memory leaves; the others go on."""
    outcomes = {name: Outcome() for name in cells}
    order = random.Random(protocol.seed)
    for repeat in range(protocol.repeats):
        with ExitStack() as stack:
            live = _opened(cells, outcomes, order, stack)
            tell(f"process {repeat + 1} of {protocol.repeats}")
            for number in range(protocol.blocks):
                names = sorted(live)
                order.shuffle(names)
                for turn, name in enumerate(names):
                    with _fitting(name, live, outcomes):
                        for sample in live[name].block(protocol.block_samples, protocol.block_seconds):
                            outcomes[name].taken.append(Taken(repeat, number, turn, sample))
    return outcomes


def _opened(
    cells: Mapping[str, Start], outcomes: Mapping[str, Outcome], order: random.Random, stack: ExitStack
) -> dict[str, Timed]:
    """A fresh process for each cell that has not run out of memory yet, built and warmed up one by one."""
    live: dict[str, Timed] = {}
    names = [name for name in cells if not outcomes[name].out_of_memory]
    order.shuffle(names)
    for name in names:
        live[name] = cells[name]()
        stack.callback(live[name].close)
        with _fitting(name, live, outcomes):
            outcomes[name].opened.append(live[name].open())
    return live


@contextmanager
def _fitting(name: str, live: dict[str, Timed], outcomes: Mapping[str, Outcome]) -> Any:
    try:
        yield
    except DoesNotFitError as error:
        outcomes[name].out_of_memory = str(error)
        outcomes[name].taken.clear()
        del live[name]
