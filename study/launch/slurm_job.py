"""What happens inside a job: its runs one after another, and on a signal home in good order.

PyTorch is imported late, when signals are already heard: a warning that finds nobody would end the process.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from study.interruption import POLITE
from study.launch.slurm_cluster import PATIENCE, ask, this_job, this_rank, this_restart, this_task
from study.launch.slurm_record import Submission, read_record
from study.run_directory import Failure, State, Status
from study.strict import ConfigError

if TYPE_CHECKING:
    from study.launch.work import Task, Work

AGAIN = 1.0  # seconds between reminders: a signal that comes before a run listens is passed on to it
EARLY = 75.0  # seconds: SLURM may send its warning a minute before it was asked to


class Signals:
    """Remembers every polite signal while active, acts on none, and reminds the run in hand."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self._done = threading.Event()
        self._reminder = threading.Thread(target=self._remind, name="reminder", daemon=True)

    def __enter__(self) -> Signals:
        for number in POLITE:
            signal.signal(number, self._remember)
        self._reminder.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.numbers.append(number)

    def _remind(self) -> None:
        while not self._done.wait(AGAIN):
            if self.numbers:
                os.kill(os.getpid(), self.numbers[0])


@dataclass(frozen=True)
class Standing:
    """What SLURM says of this very job at this moment."""

    state: str
    restarts: int
    preempted: bool
    left: float  # seconds to the time limit

    @classmethod
    def asked(cls) -> Standing | None:
        told = ask("scontrol", "show", "job", "-o", this_task())
        return None if told is None else cls.read(told.splitlines()[0], time.time())

    @classmethod
    def read(cls, line: str, now: float) -> Standing:
        values = dict(word.split("=", 1) for word in line.split() if "=" in word)
        preempted = values.get("PreemptTime", "None") not in ("None", "Unknown", "N/A")
        try:
            began = datetime.fromisoformat(values["StartTime"]).timestamp()
        except (KeyError, ValueError):
            began = now
        limit = seconds_of(values.get("TimeLimit", ""))  # EndTime would not do: of a job that ends, it is now
        return cls(values.get("JobState", ""), int(values.get("Restarts", 0)), preempted, began + limit - now)


def seconds_of(duration: str) -> float:
    """SLURM's [days-]hours:minutes:seconds; anything else is without end."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", duration)
    if match is None:
        return float("inf")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


@dataclass(frozen=True)
class Leave:
    """Why a job goes before its work is done, and whether it has to ask for its own return."""

    failure: Failure
    message: str
    requeue: bool


def reason_to_leave(number: int, standing: Standing | None, warning: int, restart: int) -> Leave:
    """What a signal meant. SLURM sends the same few for everything, so it is asked what it is up to."""
    name = signal.Signals(number).name
    if standing is None:
        return Leave(Failure.PREEMPTED, f"{name}; SLURM did not say why", number == signal.SIGUSR2)
    if standing.restarts > restart:
        return Leave(Failure.PREEMPTED, "put back into the queue", False)
    if standing.left <= 1 or standing.state == "TIMEOUT":
        return Leave(Failure.TIMED_OUT, "at its time limit", True)
    if standing.state in ("CANCELLED", "COMPLETING"):
        return Leave(Failure.STOPPED, "its job was cancelled", False)
    if standing.state == "PREEMPTED":
        return Leave(Failure.PREEMPTED, "made room for another job", False)
    if standing.preempted:
        return Leave(Failure.PREEMPTED, "makes room for another job", True)
    if standing.left < warning + EARLY:
        return Leave(Failure.TIMED_OUT, f"{standing.left:.0f} s before its time limit", True)
    return Leave(Failure.PREEMPTED, name, True)


def do_task(record: str, index: int) -> None:
    """The body of a job. Leaves with the exit code that SLURM is to show."""
    with Signals() as signals:
        try:
            submission = read_record(Path(record))
            body = Body(submission, index, signals)
            code = work_alone(body) if submission.processes == 1 else work_together(body)
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            code = 2
    if code:
        sys.exit(code)


def work_alone(body: Body) -> int:
    """The runs of the record, or those that a search asks for."""
    if not body.submission.search:
        return body.work()
    from study.search.worker import work_at_search  # a room above this one: only here does the way lead back

    return work_at_search(body)


def work_together(body: Body) -> int:
    """The same by every process of a job that trains one run in several."""
    from submitit.helpers import TorchDistributedEnvironment

    from study.distributed import LostRankError, join

    chosen = {name: os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT") if name in os.environ}
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    os.environ.update(chosen)
    try:
        with join():
            return body.work()
    except LostRankError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1


class Body:
    """The work of one array task."""

    def __init__(self, submission: Submission, index: int, signals: Signals) -> None:
        self.submission, self.runs, self.signals = submission, submission.tasks[index], signals
        self.images = 0  # of the run in hand when it began
        self.begun = 0  # runs in this start

    def work(self) -> int:
        """Every run that is neither done nor in other hands; the exit code says whether one failed."""
        from study.distributed import current
        from study.launch.work import Task

        failed = 0
        for run in self.runs:
            if current().largest(len(self.signals.numbers)):
                return self.leave()
            state = self.do(Task(self.submission.results, run))
            stopped = state is not None and state.status is Status.PENDING
            if state is not None and stopped and state.failure in (Failure.PREEMPTED, Failure.STOPPED):
                return self.leave(Task(self.submission.results, run), state)
            failed += state is not None and state.status is not Status.DONE
        return 1 if failed else 0

    def do(self, task: Task, work: Work | None = None) -> State | None:
        """One try at a run, `study.run.run` unless other work is to be done; None if another process has it."""
        from study.distributed import current
        from study.launch.together import perform_together
        from study.run import run

        before = current().first_alone(lambda: note_silent_end(task))
        failed_here = before.status is Status.FAILED and before.heartbeat > self.submission.submitted
        if failed_here and not self.submission.search:  # a search asks only for what it wants done, or done again
            say(f"{task.run} {before.status}")
            return before
        self.images = before.images
        self.begun += before.status is not Status.DONE  # of one that is done, at most scores are missing
        state = perform_together(task, work or run).state
        told = "is being done elsewhere" if state is None else f"{state.status} {state.message or ''}"
        say(f"{task.run} {told}")
        return state

    def leave(self, task: Task | None = None, state: State | None = None, number: int | None = None) -> int:
        """Note why the run in hand stopped, and ask to come back where nobody else has. The first rank speaks for all:
        the others leave in peace, or SLURM would end it before it is through. `number`: of a signal heard elsewhere."""
        if this_rank() > 0:
            return 0
        number = self.signals.numbers[0] if self.signals.numbers else number or heard(state)
        leave = reason_to_leave(number, Standing.asked(), self.submission.warning, this_restart())
        say(f"leaving: {leave.failure}, {leave.message}")
        stuck = task is not None and self.note(task, leave)
        if stuck:
            return 1
        if leave.requeue and not requeue():
            say("error: SLURM did not put the job back into the queue; the sweep command continues it")
        return 128 + number

    def note(self, task: Task, leave: Leave) -> bool:
        """True if the run ran into the limit twice without a step in between, the second time with all of the time
        for itself: once more would change nothing."""
        from study.launch.work import amend

        images = task.directory.read_state().images
        alone = self.begun <= 1
        stuck = leave.failure is Failure.TIMED_OUT and this_restart() > 0 and alone and images <= self.images
        message = f"{leave.message}, job {this_job()}"
        if stuck:
            message = f"no progress within {self.submission.minutes} minutes: give launcher.time more"
        amend(task, leave.failure, message, Status.FAILED if stuck else Status.PENDING)
        return stuck


def heard(state: State | None) -> int:
    """The signal that a run stopped for: while it listens, it alone hears the first one."""
    name = (state.message or "").removeprefix("stopped by ") if state else ""
    return signal.Signals[name] if name in signal.Signals.__members__ else signal.SIGTERM


def note_silent_end(task: Task) -> State:
    """How the run stands; if its last process left no word, that is noted."""
    from study.launch.work import record_death

    state = task.directory.read_state()
    if state.status is not Status.RUNNING:
        return state
    message = f"{state.host}:{state.pid} fell silent; job {this_job()} continues it"
    return record_death(task, Failure.NODE_LOST, message).state or state


def requeue() -> bool:
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(["scontrol", "requeue", this_task()], timeout=PATIENCE, check=False).returncode == 0
    return False


def say(line: str) -> None:
    print(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}", flush=True)
