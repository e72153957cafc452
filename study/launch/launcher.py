"""The interface that every launcher has, and the choice among those of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from study.launch.config import InlineConfig, LocalConfig
from study.launch.inline import Inline
from study.launch.local import LocalPool
from study.launch.work import Outcome, Task, Work


class Launcher(Protocol):
    """Executes tasks, each at most once per mention, and says how each ended.

    `tasks` may be a generator: it is asked for the next task only when there is room for one, so that
    what came back can decide what goes out. When `should_stop` becomes true, runs in hand save
    themselves and come back stopped; closing the iterator ends them at once.
    """

    def launch(self, tasks: Iterable[Task], should_stop: Callable[[], bool]) -> Iterator[Outcome]: ...

    def active(self) -> list[Task]:
        """What is being executed at this moment."""
        ...


def make_launcher(config: InlineConfig | LocalConfig, work: Work) -> Launcher:
    return Inline(work) if isinstance(config, InlineConfig) else LocalPool(config, work)
