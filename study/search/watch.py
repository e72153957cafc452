"""What a person sees while a search runs: a live view on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.text import Text

from study.launch.work import Task
from study.run_directory import State, Status
from study.search.summary import Family, standing_of
from study.status import progress

log = logging.getLogger("study.sweep")


class SearchWatch:
    """Hears how runs end, and says how far the search is."""

    def __init__(self, families: Sequence[Family]) -> None:
        self.families = families

    def ended(self, task: Task, state: State) -> None:
        how = "done" if state.status is Status.DONE else f"{state.failure}: {state.message}"
        self.note(f"{task.run}  {how}")

    def note(self, line: str) -> None:
        log.info("%s", line)

    def changed(self) -> None:
        """A trial has begun or ended."""


class PlainWatch(SearchWatch):
    """A line whenever the number of trials that have ended is another."""

    def __init__(self, families: Sequence[Family]) -> None:
        super().__init__(families)
        self._said: list[str] = []

    def changed(self) -> None:
        lines = [standing_of(book) for book, _ in self.families if book.ended]
        for line in lines:
            if line not in self._said:
                self.note(line)
        self._said = lines


class LiveWatch(SearchWatch):
    """A bar for the whole, a line for each family's trials, and one for every run in hand."""

    def __init__(self, families: Sequence[Family], active: Callable[[], list[Task]]) -> None:
        super().__init__(families)
        self._active = active
        self._bar = Progress(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._task = self._bar.add_task("")
        self._lines: list[str] = []
        self.live = Live(get_renderable=self._render, console=Console(stderr=True), refresh_per_second=2)
        self.changed()

    def note(self, line: str) -> None:
        self.live.console.print(Text(line))

    def changed(self) -> None:
        trials, ended = sum(len(book.trials()) for book, _ in self.families), sum(b.ended for b, _ in self.families)
        self._bar.update(self._task, completed=ended, total=trials)
        self._lines = [standing_of(book) for book, _ in self.families]

    def _render(self) -> Group:
        families = [Text(f"  {line}", no_wrap=True, overflow="ellipsis") for line in self._lines]
        runs = [
            Text(f"  {task.run}  {progress(task.directory) or 'starting'}", no_wrap=True, overflow="ellipsis")
            for task in self._active()
        ]
        return Group(self._bar, *families, *runs)


@contextmanager
def watching(families: Sequence[Family], active: Callable[[], list[Task]]) -> Iterator[SearchWatch]:
    """A listener for a search, with the live view around it where there is somebody to look."""
    if not sys.stderr.isatty():
        yield PlainWatch(families)
        return
    watch = LiveWatch(families, active)
    with watch.live:
        yield watch
        watch.changed()
