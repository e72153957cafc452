"""Carrying out a plan: freeze what is to be done, launch it, and see every run to its end."""

from __future__ import annotations

import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import yaml

from study.atomic import write_text
from study.config import to_dict
from study.interruption import StopRequest
from study.launch.launcher import Launcher
from study.launch.work import CONTINUED, Outcome, Task, give_up, owner_of
from study.lease import newest, take
from study.plan import Plan, Point, Standing, standing
from study.run import check_writable
from study.run_directory import Failure, RunDirectory, State, Status
from study.strict import ConfigError
from study.sweep_file import to_yaml

log = logging.getLogger("study.sweep")

POLL = 0.5  # seconds between looks at runs that somebody else is doing

RETRIES: dict[str, tuple[Failure, ...]] = {
    "failed": tuple(failure for failure in Failure if failure is not Failure.PRUNED),
    "pruned": (Failure.PRUNED,),
    "timeout": (Failure.TIMED_OUT,),
    "oom": (Failure.OUT_OF_MEMORY,),
    "diverged": (Failure.DIVERGED,),
    "killed": (Failure.KILLED, Failure.NODE_LOST),
    "config": (Failure.BAD_CONFIG,),
    "storage": (Failure.STORAGE,),
    "bug": (Failure.BUG,),
}
"""What `--retry` can name; of these, only a search needs to be asked for `storage`."""


def retry_words(failures: Iterable[Failure | None]) -> str:
    """What to give to `--retry` to have runs that ended like this done again."""
    names = {next((n for n, group in RETRIES.items() if n != "failed" and end in group), "failed") for end in failures}
    return ",".join(sorted(names))


@dataclass(frozen=True)
class Wishes:
    """What the caller asked for beyond what is missing."""

    retry: tuple[Failure, ...] = ()
    force: bool = False
    max_failures: int = 0  # 0: never stop for failures
    tries: int = 3


class Listener(Protocol):
    """Hears what happens, to show it."""

    def ended(self, task: Task, state: State) -> None: ...

    def note(self, line: str) -> None: ...


def wanted(plan: Plan, wishes: Wishes) -> list[Point]:
    """The runs to do now: those never finished, and those asked for again."""

    def is_wanted(point: Point) -> bool:
        stands, state = standing(point)
        if stands is Standing.FAILED:
            return wishes.force or state.failure in wishes.retry
        return stands is not Standing.DONE or wishes.force

    return [point for point in plan.points if is_wanted(point)]


def write_plan(plan: Plan, points: list[Point]) -> None:
    """Freeze the sweep, its plan and the configs of the runs to do; on any failure leave nothing of it behind."""
    check_writable(plan.results)
    created: list[Path] = []
    try:
        for folder in (plan.results, plan.results / "runs", plan.folder):
            _make(folder, created)
        _keep_other_plan(plan)
        write_text(plan.folder / "sweep.yaml", to_yaml(plan.sweep))
        write_text(plan.folder / "plan.json", _plan_text(plan))
        for point in points:
            _make(point.directory.path, created)
            freeze(point)
    except OSError as error:
        for folder in reversed(created):
            _remove(folder)
        raise ConfigError(f"results={str(plan.results)!r} cannot be written to: {error.strerror or error}") from error


def freeze(point: Point) -> None:
    """Write down the config of a run for whoever does it; one that others are doing stays as it is."""
    directory = point.directory
    text = yaml.dump(to_dict(point.config), Dumper=yaml.CSafeDumper, sort_keys=False)
    if directory.config.exists() and directory.config.read_text(encoding="utf-8") == text:
        return
    if directory.config.exists() and is_held(directory.path):
        return
    try:
        write_text(directory.config, text, lasting=False)  # the same command writes it again
    except FileNotFoundError:
        if not directory.config.exists():  # else: another sweep froze it, and its run has begun to tidy up
            raise


def archive(points: Sequence[Point]) -> None:
    """Set the present attempts aside, in `old-<n>/`, so that the runs start from nothing; all of them or none."""
    for point in points:
        claim = newest(point.directory.path)
        if claim is not None and claim.held:
            raise ConfigError(f"run {point.run} is being done by {owner_of(point.directory.path)}: stop that first")
    try:
        for point in points:
            if point.directory.path.exists():
                _set_aside(point.directory)
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be set aside: {error.strerror}") from error


def _set_aside(directory: RunDirectory) -> None:
    """Checkpoints first, then the state: interrupted at any moment, it is done with its rows, or it begins anew."""
    lease = take(directory.path)
    if lease is None:
        raise ConfigError(f"run {directory.identity} is being done by {owner_of(directory.path)}: stop that first")
    with lease:
        kept = [path for path in directory.path.iterdir() if path.name != "leases" and not path.name.startswith("old-")]
        if not kept:
            return
        folder = directory.path / f"old-{_next_number(directory.path, 'old-*')}"
        folder.mkdir()
        for path in sorted(kept, key=lambda path: (path != directory.checkpoints, path != directory.state)):
            path.rename(folder / path.name)


def _next_number(folder: Path, pattern: str) -> int:
    """One more than the highest among `old-1`, `plan-3.json` and the like."""
    numbers = [int(digits[0]) for path in folder.glob(pattern) if (digits := re.findall(r"\d+", path.name))]
    return 1 + max(numbers, default=0)


@dataclass
class Execution:
    """One call's worth of work on a plan."""

    plan: Plan
    launcher: Launcher
    wishes: Wishes
    listener: Listener
    awaited: Container[str] = ()  # runs that jobs wait to do: their configs stay as they were submitted
    failures: int = 0
    halted: bool = False
    ends: dict[str, State] = field(default_factory=dict)  # by run, for those that ended while we looked
    _tries: Counter[Task] = field(default_factory=Counter)
    _told: set[Task] = field(default_factory=set)  # that somebody else is doing them

    def run(self, points: list[Point]) -> None:
        """Until every run is done, has failed, or the caller wants to stop."""
        if self.wishes.force:
            check_writable(self.plan.results)
            archive(points)
        write_plan(self.plan, [point for point in points if self.wishes.force or point.run not in self.awaited])
        results = str(self.plan.results)
        tasks = [Task(results, point.run) for point in points]
        with StopRequest() as stop:
            while tasks and not self.halted:
                tasks = self._round(tasks, lambda: self.halted or stop.number is not None)
                self.halted = self.halted or stop.number is not None

    def _round(self, tasks: list[Task], should_stop: Callable[[], bool]) -> list[Task]:
        """Launch each task once; returns those to launch again."""
        again: list[Task] = []
        elsewhere: list[Task] = []
        for outcome in self.launcher.launch(tasks, should_stop):
            if outcome.state is None:
                elsewhere.append(outcome.task)
            elif self._should_repeat(outcome, outcome.state):
                again.append(outcome.task)
        return [*again, *elsewhere] if again else self._waited(elsewhere, should_stop)

    def _should_repeat(self, outcome: Outcome, state: State) -> bool:
        task = outcome.task
        if state.status is Status.PENDING and state.failure is Failure.STOPPED:
            self.halted = True
        elif state.status is Status.PENDING and state.failure in CONTINUED:
            self._tries[task] += 1
            if self._tries[task] < self.wishes.tries:
                self.listener.note(f"{task.run} {state.failure}: {state.message}; it will continue")
                return True
            state = give_up(task, state, self._tries[task])
        self.ends[task.run] = state
        self.listener.ended(task, state)
        if state.status is Status.FAILED:
            self.failures += 1
            self.halted = self.halted or 0 < self.wishes.max_failures <= self.failures
        return False

    def _waited(self, tasks: list[Task], should_stop: Callable[[], bool]) -> list[Task]:
        """Wait for runs that others are doing, until one of them is left undone; returns all that are, to launch."""
        for task in tasks:
            if task not in self._told:
                self._told.add(task)
                self.listener.note(f"{task.run} is being done by {owner_of(task.directory.path)}: waiting")
        while tasks and not should_stop():
            held = [task for task in tasks if is_held(task.directory.path)]
            left = [task for task in tasks if task in held or not self._ended_elsewhere(task)]
            if len(left) > len(held):
                return left
            tasks = left
            if tasks:
                time.sleep(POLL)
        return tasks

    def _ended_elsewhere(self, task: Task) -> bool:
        state = task.directory.read_state()
        if state.status in (Status.DONE, Status.FAILED):
            self._should_repeat(Outcome(task, state), state)
            return True
        return False


def is_held(run: Path) -> bool:
    claim = newest(run)
    return claim is not None and claim.held


def _make(folder: Path, created: list[Path]) -> None:
    """Make a folder, noting those that were not there."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    created.extend(reversed(missing))


def _remove(folder: Path) -> None:
    """A folder made a moment ago, and the files put there since, unless somebody else uses it by now."""
    if (folder / "leases").exists():
        return
    try:
        for path in folder.iterdir():
            if path.is_file():
                path.unlink()
        folder.rmdir()
    except OSError as error:
        log.warning("%s could not be removed: %s", folder, error.strerror)


def _plan_text(plan: Plan) -> str:
    return json.dumps(plan.as_tree(), indent=2, allow_nan=False) + "\n"


def _keep_other_plan(plan: Plan) -> None:
    """Another sweep of this name was here: its plan stays beside the new one."""
    sweep, plan_file = plan.folder / "sweep.yaml", plan.folder / "plan.json"
    if not plan_file.exists() or not sweep.exists() or plan_file.read_text(encoding="utf-8") == _plan_text(plan):
        return
    number = _next_number(plan.folder, "plan-*.json")
    with suppress(FileNotFoundError):  # a third sweep of this name was faster
        sweep.replace(plan.folder / f"sweep-{number}.yaml")
        plan_file.replace(plan.folder / f"plan-{number}.json")
    log.warning("%s had another plan, kept as plan-%d.json", plan.folder, number)
