"""What a person sees while a sweep runs: a live view on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from study.run_directory import State, Status

if TYPE_CHECKING:
    from study.launch.launcher import Launcher
    from study.launch.work import Task
    from study.plan import Plan

log = logging.getLogger("study.sweep")


class Watch:
    """Hears how runs end, and says so in one line each."""

    def __init__(self, plan: Plan, total: int) -> None:
        self.labels = {point.run: plan.label(point) for point in plan.points}
        self.total, self.count, self.failed = total, 0, 0
        self._begun = time.monotonic()

    def ended(self, task: Task, state: State) -> None:
        self.count += 1
        self.failed += state.status is Status.FAILED
        how = "done" if state.status is Status.DONE else f"{state.status}, {state.failure}: {state.message}"
        self.note(f"[{self.count}/{self.total}] {self.labels[task.run]}  {task.run}  {how}")

    def note(self, line: str) -> None:
        log.info("%s", line)


@contextmanager
def watching(plan: Plan, launcher: Launcher, total: int) -> Iterator[Watch]:
    """A listener for an execution, with the live view around it where there is somebody to look."""
    watch = Watch(plan, total)
    if not sys.stderr.isatty():
        yield watch
        return
    from study.live import live

    with live(watch, launcher):
        yield watch
