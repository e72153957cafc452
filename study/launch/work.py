"""What is done with one run wherever it is launched: take its lease, do it, and say how it ended."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import study.sample  # noqa: F401  a run imports it late: better once in the server than once per worker
from study.config import RunConfig
from study.lease import newest, take
from study.run import log_file
from study.run_directory import Failure, RunDirectory, State, Status, load_config
from study.strict import ConfigError

log = logging.getLogger("study.launch")

CONTINUED = (Failure.KILLED, Failure.PREEMPTED, Failure.NODE_LOST, Failure.TIMED_OUT, Failure.STOPPED)
"""Ends that were no fault of the run: it continues where it was. Any other needs somebody to ask for it."""

Work = Callable[[RunConfig], State]
"""Does a run, or what is left of it; `study.run.run` and whatever else behaves like it."""


@dataclass(frozen=True)
class Task:
    """A run to do: its config is frozen in its folder, and nothing else is read."""

    results: str
    run: str

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.results, self.run)


@dataclass(frozen=True)
class Outcome:
    """How a try at a task ended; `state` is None if another process has the run."""

    task: Task
    state: State | None


def perform(task: Task, work: Work) -> Outcome:
    """One try at a task in this process; never an error, or it would take the other runs with it."""
    directory = task.directory
    try:
        lease = take(directory.path)
        if lease is None:
            return Outcome(task, None)
        with lease:
            return Outcome(task, do_leased(directory, work))
    except OSError as error:
        return Outcome(task, _unrecorded(error))


def _unrecorded(error: OSError) -> State:
    """The end of a try that could not even be written down."""
    where = f" ({error.filename})" if error.filename else ""
    return State(Status.FAILED, failure=Failure.STORAGE, message=f"{error.strerror or error}{where}")


def do_leased(directory: RunDirectory, work: Work) -> State:
    """The try itself, by whoever has the lease."""
    state = State()
    try:
        state = directory.read_state()
        config = load_config(directory.config)
        return work(replace(config, results=str(directory.path.parent.parent)))
    except ConfigError as error:
        failure, message = Failure.BAD_CONFIG, str(error)
    except OSError as error:
        failure, message = Failure.STORAGE, str(_unrecorded(error).message)
    except Exception as error:
        failure, message = Failure.BUG, next(iter(str(error).splitlines()), type(error).__name__)
        with log_file(directory.log):
            logging.getLogger("study.traceback").error("traceback", exc_info=error)
    attempts = state.attempts + 1
    return directory.write_state(
        state, status=Status.FAILED, attempts=attempts, failure=failure, message=message.splitlines()[0]
    )


def record_death(task: Task, failure: Failure, message: str) -> Outcome:
    """Note on behalf of a process that died how its run ended."""
    try:
        lease = take(task.directory.path)
        if lease is None:
            return Outcome(task, None)
        with lease:
            return Outcome(task, _died(task.directory, failure, message))
    except OSError as error:
        return Outcome(task, _unrecorded(error))


def _died(directory: RunDirectory, failure: Failure, message: str) -> State:
    state = directory.read_state()
    if state.status is Status.DONE:
        return state
    begun = state.status is Status.RUNNING  # else it died before it counted its attempt
    attempts = state.attempts + (not begun)
    status = Status.PENDING if failure in CONTINUED else Status.FAILED
    return directory.write_state(state, status=status, attempts=attempts, failure=failure, message=message)


def amend(task: Task, failure: Failure, message: str, status: Status) -> None:
    """Say more of why a run stopped than it could know itself."""
    lease = take(task.directory.path)
    if lease is None:
        return
    with lease:
        state = task.directory.read_state()
        if state.status is Status.PENDING:
            task.directory.write_state(state, status=status, failure=failure, message=message)


def give_up(task: Task, state: State, tries: int) -> State:
    """A run that never ends by itself counts as failed, until somebody asks for another try."""
    message = f"{state.message} ({tries} tries)"
    try:
        lease = take(task.directory.path)
        if lease is None:
            return state
        with lease:
            return task.directory.write_state(state, status=Status.FAILED, message=message)
    except OSError as error:
        return _unrecorded(error)


def owner_of(run: Path) -> str:
    """Who is doing a run, for people."""
    claim = newest(run)
    return f"process {claim.holder.pid} on {claim.holder.host}" if claim else "nobody"
