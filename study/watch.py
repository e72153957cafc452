"""What a person sees while a sweep runs: a live view on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from study.launch.launcher import Launcher
from study.launch.work import Task
from study.plan import Plan
from study.run_directory import State, Status
from study.status import progress

log = logging.getLogger("study.sweep")


class Watch:
    """Hears how runs end, and says so in one line each."""

    def __init__(self, plan: Plan, total: int) -> None:
        self.labels = {point.run: plan.label(point) for point in plan.points}
        self.total, self.count = total, 0

    def ended(self, task: Task, state: State) -> None:
        self.count += 1
        how = "done" if state.status is Status.DONE else f"{state.status}, {state.failure}: {state.message}"
        self.note(f"[{self.count}/{self.total}] {self.labels[task.run]}  {task.run}  {how}")

    def note(self, line: str) -> None:
        log.info("%s", line)


class LiveWatch(Watch):
    """The same lines above a bar for the whole and a line for every run in hand."""

    def __init__(self, plan: Plan, total: int, launcher: Launcher) -> None:
        super().__init__(plan, total)
        self._launcher = launcher
        self._bar = Progress(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._task = self._bar.add_task("", total=total)
        self.live = Live(get_renderable=self._render, console=Console(stderr=True), refresh_per_second=2)

    def ended(self, task: Task, state: State) -> None:
        super().ended(task, state)
        self._bar.update(self._task, completed=self.count)

    def note(self, line: str) -> None:
        self.live.console.print(Text(line))

    def _render(self) -> Group:
        lines = [
            Text(f"  {self.labels[task.run]}  {progress(task.directory) or 'starting'}", overflow="ellipsis")
            for task in self._launcher.active()
        ]
        return Group(self._bar, *lines)


@contextmanager
def watching(plan: Plan, launcher: Launcher, total: int) -> Iterator[Watch]:
    """A listener for an execution, with the live view around it where there is somebody to look."""
    if not sys.stderr.isatty() or not total:
        yield Watch(plan, total)
        return
    watch = LiveWatch(plan, total, launcher)
    with watch.live:
        yield watch
