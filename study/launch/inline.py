"""One run after another in this very process: for debuggers, notebooks and one-run sweeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from study.launch.work import Outcome, Task, Work, perform


class Inline:
    def __init__(self, work: Work) -> None:
        self.work = work
        self._task: Task | None = None

    def launch(self, tasks: Iterable[Task], should_stop: Callable[[], bool]) -> Iterator[Outcome]:
        """How each task ended, as it ends."""
        for task in tasks:
            self._task = task
            yield self.do(task)
            self._task = None
            if should_stop():
                return

    def do(self, task: Task) -> Outcome:
        return perform(task, self.work)

    def active(self) -> list[Task]:
        return [self._task] if self._task else []
