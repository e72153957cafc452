"""SLURM: job arrays through submitit, submitted once and left alone, or followed to their end."""

from __future__ import annotations

import getpass
import logging
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from study.estimate import estimate
from study.launch.config import SlurmConfig
from study.launch.slurm_cluster import check_installed, check_options, refusal
from study.launch.slurm_known import FAILED, QUEUED, Known, let_arrive
from study.launch.slurm_limits import limits
from study.launch.slurm_packs import packs
from study.launch.slurm_record import Submission, all_open_records, new_token, slurm_folder
from study.launch.slurm_script import FullError, sbatch_flags, send, warning_seconds, without_foreign
from study.launch.slurm_snapshot import snapshot
from study.launch.work import Outcome, Task
from study.lease import take
from study.run_directory import State, Status, load_config
from study.strict import ConfigError
from study.throughput import recorded_speed

log = logging.getLogger("study.sweep")

LOOK = 2.0  # seconds between looks at the state files
ASK = 15.0  # seconds between questions to SLURM
LONGEST = 70  # letters of a sweep's name: squeue's column has to hold the token behind it
Pack = Sequence[Task]


class BusyError(ConfigError):
    """Another process is submitting this sweep at this moment."""


class Slurm:
    """Submits what is neither done nor queued; `launch` then returns, or follows if told to."""

    def __init__(self, config: SlurmConfig, sweep: Path, resubmit: bool = False) -> None:
        """Refuses what the cluster would refuse. `resubmit`: without asking SLURM what became of earlier jobs."""
        check_installed()
        if len(sweep.name) > LONGEST:
            raise ConfigError(f"launcher=slurm: {sweep.name} is no name for jobs: more than {LONGEST} letters")
        check_options(config.slurm)
        self.config, self.folder, self.resubmit = config, slurm_folder(sweep), resubmit
        self.limits = limits(sbatch_flags(config))
        with without_foreign(sbatch_flags(config)):
            complaint = refusal(sbatch_flags(config))
        if complaint:
            raise ConfigError(f"launcher=slurm: SLURM refuses such a job: {complaint}")
        self.results = self.folder.parent.parent
        self.submitted: list[str] = []  # job numbers, in this call
        self.sent = 0  # runs submitted in this call
        self.held: Counter[str] = Counter()  # runs not to be submitted, by the reason
        self.left_out = 0  # runs that found no room
        self.unsent: list[Task] = []  # those, and what a job that ended had not come to
        self._at_work: list[Task] = []

    def launch(self, tasks: Iterable[Task], should_stop: Callable[[], bool]) -> Iterator[Outcome]:
        """How each task ended, if followed; else nothing, and at once."""
        wanted = {task: task.directory.read_state() for task in tasks}
        with self._submitting():
            self._submit(list(wanted))
        if self.config.wait:
            yield from self._follow(wanted, should_stop)

    def active(self) -> list[Task]:
        return self._at_work

    def awaited(self) -> set[str]:
        """Runs of which a job is still to come or at work, as far as SLURM says."""
        return self._known().awaited()

    def hire(self, count: int, search: str, retry: Sequence[str]) -> int:
        """Have so many jobs at a search, whose file is given as text; how many of them were sent now."""
        with self._submitting():
            known = self._settled()
            known.close_ended()
            present = min(count, known.workers())
            self.held = Counter({QUEUED: present} if present else {})
            missing = count - present
            self.left_out = len(self._send([()] * missing, known.queued, search, retry))
        return missing - self.left_out

    def report(self, what: str = "runs") -> list[str]:
        """What happened, for a caller that does not wait."""
        lines = [f"{self.sent} {what} submitted: job {', '.join(self.submitted)}"] if self.submitted else []
        lines += [f"{count} {what} {reason}" for reason, count in self.held.items()]
        if self.left_out:
            lines.append(f"{self.left_out} {what} found no room among {self.limits.most} jobs: call again later")
        where = "" if self.results == Path("results").absolute() else f" --results {shlex.quote(str(self.results))}"
        name = self.folder.parent.name
        return [
            *lines,
            f"how it goes:  python -m study.status {name}{where} --watch",
            f"to end it:    python -m study.cancel {name}{where}",
        ]

    @contextmanager
    def _submitting(self) -> Iterator[None]:
        """One process at a time decides what is missing in a sweep."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lease = take(self.folder)
        if lease is None:
            raise BusyError(f"another process is submitting {self.folder.parent.name} at this moment")
        with lease:
            yield

    def _known(self) -> Known:
        known = Known.now(self.folder, self.limits.cluster, self.resubmit)
        if known.jobs is None and not self.resubmit:
            log.warning("SLURM does not answer: what was submitted counts as queued (--resubmit: as gone)")
        return known

    def _settled(self) -> Known:
        let_arrive(all_open_records(self.results))
        return self._known().settled()

    def _submit(self, tasks: Sequence[Task]) -> None:
        known = self._settled()
        reasons = {task: known.hold(task) for task in tasks}
        known.close_ended()
        self.held = Counter(reason for reason in reasons.values() if reason)
        missing = [task for task in tasks if not reasons[task]]
        self.unsent = [task for pack in self._send(self._packs(missing), known.queued) for task in pack]
        self.left_out = len(self.unsent)

    def _send(self, packs: Sequence[Pack], queued: int, search: str = "", retry: Sequence[str] = ()) -> Sequence[Pack]:
        """Array by array; those that found no room come back. When SLURM refuses one, those before it are named."""
        room = self.limits.room(queued) if packs else 0
        start, end = 0, min(room, len(packs))
        code = str(snapshot(self.folder)) if end else ""
        while start < end:
            chunk = packs[start : min(start + self.limits.array, end)]
            record = self._record(chunk, code, search, retry).write()
            try:
                number = send(self.config, record)
            except FullError as error:  # others were faster, or something else is counted than we know of
                log.warning("SLURM has no room for more jobs: %s", error)
                break
            except ConfigError as error:
                before = f"; submitted before that: {', '.join(self.submitted)}" if self.submitted else ""
                raise ConfigError(f"{error}{before}") from error
            record.changed(job=number)
            self.submitted.append(number)
            self.sent += len(chunk) if search else sum(len(pack) for pack in chunk)
            start += len(chunk)
        return packs[start:]

    def _record(self, packs: Sequence[Pack], code: str, search: str, retry: Sequence[str]) -> Submission:
        return Submission(
            folder=str(self.folder),
            token=new_token(),
            job="",
            tasks=tuple(tuple(task.run for task in pack) for pack in packs),
            submitted=time.time(),
            cluster=self.limits.cluster,
            user=getpass.getuser(),
            minutes=self.config.time,
            warning=warning_seconds(self.config.time),
            processes=self.config.processes,
            code=code,
            search=search,
            retry=tuple(retry),
        )

    def _packs(self, tasks: Sequence[Task]) -> list[Pack]:
        if not tasks:
            return []
        speed = recorded_speed(self.results)
        seconds = [estimate(load_config(task.directory.config), speed).seconds for task in tasks]
        return packs(self.config, tasks, seconds)

    def _follow(self, before: Mapping[Task, State], should_stop: Callable[[], bool]) -> Iterator[Outcome]:
        """From the state files; SLURM is asked now and then for jobs that ended without a word."""
        left, asked = list(before), time.monotonic()
        while left and not should_stop():
            states = {task: task.directory.read_state() for task in left}
            self._at_work = [task for task, state in states.items() if state.status is Status.RUNNING]
            changed = [task for task, state in states.items() if state != before[task]]  # an old end is none
            ended = [task for task in changed if states[task].status in (Status.DONE, Status.FAILED)]
            for task in ended:
                left.remove(task)
                yield Outcome(task, states[task])
            if time.monotonic() - asked > ASK:
                asked = time.monotonic()
                if self.unsent:
                    with suppress(BusyError), self._submitting():
                        self._submit(self.unsent)
                for task, state in self._given_up([task for task in left if task not in self.unsent]):
                    if state == before[task]:  # its job ended before its turn: that was no try of its own
                        self.unsent.append(task)
                        continue
                    left.remove(task)
                    yield Outcome(task, state)
            time.sleep(LOOK)

    def _given_up(self, tasks: Iterable[Task]) -> list[tuple[Task, State]]:
        """Tasks of which no job is left, and how they ended."""
        known = Known.now(self.folder, self.limits.cluster, self.resubmit)
        if known.jobs is None:
            return []
        held = {task: known.hold(task) for task in tasks}
        return [(task, task.directory.read_state()) for task, reason in held.items() if reason in ("", FAILED)]
