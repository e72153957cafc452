"""A search on a cluster: an array of workers that share its storage, and somebody who follows them if asked to."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path

from study.estimate import estimate
from study.execute import Wishes, is_held
from study.interruption import StopRequest
from study.launch.config import SlurmConfig
from study.launch.slurm import ASK, LOOK, BusyError, Slurm
from study.launch.slurm_packs import SPREAD, packs
from study.launch.work import Task
from study.search.book import RUNS
from study.search.command import Search
from study.search.watch import watching
from study.sweep_file import to_yaml
from study.throughput import recorded_speed


class Workforce:
    """As many jobs at the search as its open trials are worth."""

    def __init__(self, search: Search, wishes: Wishes, slurm: Slurm) -> None:
        self.search, self.wishes, self.slurm = search, wishes, slurm
        self._text = to_yaml(search.sweep)
        self._hired = self._ended = 0  # how often in a row workers were sent; trials that had ended by then

    def fill_up(self) -> int:
        """Send the workers that are missing; how many."""
        retry = [failure.value for failure in self.wishes.retry]
        return self.slurm.hire(wanted(self.search, self.slurm.config), self._text, retry)

    @property
    def has_failed_enough(self) -> bool:
        """For somebody who wants to stop following then; what is in the queue goes on."""
        return 0 < self.wishes.max_failures <= self.search.failures

    def replace_lost(self) -> bool:
        """Send workers for those that went; False if they go again and again and not one trial ends."""
        with suppress(BusyError):
            sent = self.fill_up()
            ended = sum(book.ended for book, _ in self.search.families)
            self._hired = self._hired + bool(sent) if ended == self._ended else bool(sent)
            self._ended = ended
        return self._hired < self.wishes.tries


def wanted(search: Search, config: SlurmConfig) -> int:
    """One worker per pack of open trials, and no more than may work at a time: of what is proposed at once, none
    learns from the other."""
    speed = recorded_speed(search.folder.parent)
    seconds = []
    for book, space in search.families:
        each = estimate(space.probe().config, speed).seconds * len(space.seeds)
        seconds += [each] * book.open
    return min(len(packs(config, seconds, seconds)), config.parallel or SPREAD)


def search_on_cluster(search: Search, wishes: Wishes, slurm: Slurm) -> int:
    """The exit code: of a call that does not wait, 0."""
    force = Workforce(search, wishes, slurm)
    force.fill_up()
    if not slurm.config.wait:
        print("\n".join(slurm.report("workers")))
        return 0
    given_up = _follow(search, force)
    code = search.conclude(search.failures)
    if given_up:
        lost = f"workers went {wishes.tries} times in a row without ending a trial: python -m study.status says how"
        print(lost, file=sys.stderr)
    return 1 if given_up else code


def _follow(search: Search, force: Workforce) -> bool:
    """Until every trial has ended, or the caller wants to stop. True if workers do nothing but go."""
    asked = time.monotonic()
    with watching(search.families, lambda: at_work(search)) as watch, StopRequest() as stop:
        while stop.number is None and not search.is_finished and not force.has_failed_enough:
            watch.changed()
            if time.monotonic() - asked > ASK:
                if not force.replace_lost():
                    return True
                asked = time.monotonic()
            time.sleep(LOOK)
        watch.changed()
    return False


def at_work(search: Search) -> list[Task]:
    """Runs of trials that somebody holds."""
    found = []
    for book, space in search.families:
        results = str(space.probe().directory.path.parent.parent)
        for trial in book.running():
            runs = trial.user_attrs.get(RUNS, [])
            found += [Task(results, run) for run in runs if is_held(Path(results) / "runs" / run)]
    return found
