"""SLURM: job arrays through submitit, submitted once and left alone, or followed to their end."""

from __future__ import annotations

import getpass
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError, JobPaths

from study.estimate import estimate
from study.launch.config import SlurmConfig
from study.launch.slurm_cluster import Job, check_installed, check_options, limits, refusal
from study.launch.slurm_end import UNSHARED, end_of
from study.launch.slurm_job import do_task
from study.launch.slurm_record import (
    Place,
    Submission,
    all_open_records,
    is_over,
    jobs_of,
    look,
    new_token,
    places,
    slurm_folder,
)
from study.launch.slurm_snapshot import snapshot
from study.launch.work import Outcome, Task, record_death
from study.lease import newest, take
from study.run_directory import Failure, State, Status, load_config
from study.strict import ConfigError
from study.throughput import recorded_speed

log = logging.getLogger("study.sweep")

PACK_SECONDS = 600.0  # of work in one job: starting Python and PyTorch takes some ten
SPREAD = 8  # jobs that short runs are spread over before they are packed
LOOK = 2.0  # seconds between looks at the state files
ASK = 15.0  # seconds between questions to SLURM
IN_FLIGHT = 30.0  # seconds after which a submission without a number will not get one by itself
LONGEST = 70  # letters of a sweep's name: squeue's column has to hold the token behind it
FOREIGN = ("ARRAY_INX", "ERROR", "JOB_NAME", "NO_REQUEUE", "OPEN_MODE", "OUTPUT", "REQUEUE", "SIGNAL", "WAIT")
"""SBATCH_... variables that would overrule what the launcher itself says in the script."""


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
        self.limits = limits()
        with without_foreign(sbatch_flags(config)):
            complaint = refusal(sbatch_flags(config))
        if complaint:
            raise ConfigError(f"launcher=slurm: SLURM refuses such a job: {complaint}")
        self.results = self.folder.parent.parent
        self.submitted: list[str] = []  # job numbers, in this call
        self.sent = self.held = 0  # runs: submitted now; in others' hands already
        self.unsent: list[Task] = []  # for want of room in the queue
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
        records = all_open_records(self.results)
        jobs = self._queue(records)
        return {run for run, place in places(records, jobs).items() if self._may_come(place, jobs)}

    def report(self) -> list[str]:
        """What happened, for a caller that does not wait."""
        lines = [f"{self.sent} runs submitted: job {', '.join(self.submitted)}"] if self.submitted else []
        if self.held:
            lines.append(f"{self.held} runs are queued or running already")
        if self.unsent:
            lines.append(f"{len(self.unsent)} runs found no room among {self.limits.jobs} jobs: call again later")
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

    def _submit(self, tasks: Sequence[Task]) -> None:
        records = all_open_records(self.results)
        let_arrive(records)
        jobs = self._queue(records)
        settled = [self._settled(record, jobs) for record in records]
        known = places([record for record in settled if record is not None], jobs)
        missing = [task for task in tasks if not self._is_elsewhere(task, known.get(task.run), jobs)]
        # only what was read before SLURM answered: of what was submitted since, the answer knows nothing
        close_ended([record for record in settled if record and record.cluster == self.limits.cluster], jobs)
        self.held, self.unsent = len(tasks) - len(missing), []
        if missing:
            self._send(missing, sum(job.is_open for job in jobs or ()))

    def _queue(self, records: Sequence[Submission]) -> list[Job] | None:
        jobs = look(records)
        if jobs is None and not self.resubmit:
            log.warning("SLURM does not answer: what was submitted counts as queued (--resubmit: as gone)")
        return jobs

    def _settled(self, record: Submission, jobs: list[Job] | None) -> Submission | None:
        """A record whose submitter died gets its job's number, or goes."""
        if record.job or jobs is None or record.cluster != self.limits.cluster or self._is_others(record):
            return record
        number = next((job.array for job in jobs_of(record, jobs)), "")
        if not number:
            record.withdraw()
            return None
        log.warning("job %s was submitted by a call that ended before it could say so", number)
        complete_pickles(record, number)
        return record.changed(job=number)

    def _is_others(self, record: Submission) -> bool:
        """Whether it is for somebody else to say what became of it: another user, or a submitter still at work."""
        if record.folder == str(self.folder):
            return False
        claim = newest(Path(record.folder))
        return record.user != getpass.getuser() or (claim is not None and claim.held)

    def _may_come(self, place: Place, jobs: list[Job] | None) -> bool:
        """Whether a job of the run is open, or may be as far as is known."""
        if place.job is not None:
            return place.job.is_open
        return self._is_unknown(place, jobs)

    def _is_unknown(self, place: Place, jobs: list[Job] | None) -> bool:
        """Whether SLURM's answer says nothing about it."""
        return jobs is None or not place.submission.job or place.submission.cluster != self.limits.cluster

    def _is_elsewhere(self, task: Task, place: Place | None, jobs: list[Job] | None) -> bool:
        """Whether a job has the run in its hands or will; if one had it and lost it, that is noted."""
        claim = newest(task.directory.path)
        if claim is not None and claim.held:
            return True
        if place is None:
            return False
        if place.job is not None and place.job.is_open:
            return not failed_since(task, place.submission)
        if self._is_unknown(place, jobs):
            return not self.resubmit
        return note_end(task, place)

    def _send(self, tasks: Sequence[Task], queued: int) -> None:
        """Array by array; when SLURM refuses one, those before it stay and are named."""
        packs = self._packs(tasks)
        room = max(0, self.limits.jobs - queued)
        self.unsent = [task for pack in packs[room:] for task in pack]
        code = snapshot(self.folder)
        for start in range(0, min(room, len(packs)), self.limits.array):
            chunk = packs[start : min(start + self.limits.array, room)]
            try:
                number = self._send_array(chunk, code)
            except ConfigError as error:
                before = f"; submitted before that: {', '.join(self.submitted)}" if self.submitted else ""
                raise ConfigError(f"{error}{before}") from error
            self.submitted.append(number)
            self.sent += sum(len(pack) for pack in chunk)

    def _send_array(self, packs: Sequence[Sequence[Task]], code: Path) -> str:
        config = self.config
        record = Submission(
            folder=str(self.folder),
            token=new_token(),
            job="",
            tasks=tuple(tuple(task.run for task in pack) for pack in packs),
            submitted=time.time(),
            cluster=self.limits.cluster,
            user=getpass.getuser(),
            minutes=config.time,
            warning=warning_seconds(config.time),
            processes=config.processes,
            code=str(code),
        ).write()
        executor = make_executor(config, record)
        indexes = list(range(len(packs)))
        try:
            with without_foreign(sbatch_flags(config)):
                jobs = executor.map_array(do_task, [str(record.path)] * len(packs), indexes)
        except (FailedJobError, FailedSubmissionError) as error:
            said = reason_of(str(error))
            if is_refusal(error):
                record.withdraw()
                raise ConfigError(f"SLURM refused an array: {said}") from error
            raise ConfigError(f"SLURM did not say whether it took an array ({said}): call again to find out") from error
        return record.changed(job=jobs[0].job_id.split("_")[0]).job

    def _packs(self, tasks: Sequence[Task]) -> list[Sequence[Task]]:
        if self.config.processes > 1:
            return [[task] for task in tasks]
        if self.config.pack:
            return [tasks[start : start + self.config.pack] for start in range(0, len(tasks), self.config.pack)]
        speed = recorded_speed(self.results)
        seconds = [estimate(load_config(task.directory.config), speed).seconds for task in tasks]
        most = min(PACK_SECONDS, self.config.time * 60 / 2)
        return packed(tasks, seconds, most, max(1, len(tasks) // (self.config.parallel or SPREAD)))

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
                    left.remove(task)
                    yield Outcome(task, state)
            time.sleep(LOOK)

    def _given_up(self, tasks: Iterable[Task]) -> list[tuple[Task, State]]:
        """Tasks of which no job is left, and how they ended."""
        records = all_open_records(self.results)
        jobs = look(records)
        if jobs is None:
            return []
        known = places(records, jobs)
        return [
            (task, task.directory.read_state())
            for task in tasks
            if not self._is_elsewhere(task, known.get(task.run), jobs)
        ]


def let_arrive(records: Iterable[Submission]) -> None:
    """Wait until no array can be on its way to SLURM any more whose submitter died before it heard the number."""
    sent = max((record.submitted for record in records if not record.job), default=0.0)
    time.sleep(max(0.0, sent + IN_FLIGHT - time.time()))


def failed_since(task: Task, submission: Submission) -> bool:
    """Whether the run came to its end within this submission: its job will not do it again."""
    state = task.directory.read_state()
    return state.status is Status.FAILED and state.heartbeat > submission.submitted


def close_ended(records: Iterable[Submission], jobs: list[Job] | None) -> None:
    """Put away the records whose jobs have ended; how their runs ended is noted first."""
    if jobs is None:
        return
    for record in records:
        if record.job and is_over(record, jobs):
            for run, place in places([record], jobs).items():
                note_end(Task(record.results, run), place)
            record.close()


def note_end(task: Task, place: Place) -> bool:
    """A job ended without saying how its run did: SLURM's word for it goes into the run's state. True if by that
    the run has failed, so that only somebody's wish tries it again."""
    state = task.directory.read_state()
    said = state.status is not Status.RUNNING and state.heartbeat > place.submission.submitted
    if state.status is Status.DONE or said:
        return False
    failure, message = end_of(place)
    in_pack = len(place.submission.tasks[place.index]) > 1
    if failure is Failure.OUT_OF_MEMORY and in_pack and state.status is not Status.RUNNING:
        failure = Failure.KILLED  # another run of the job took the memory
    noted = record_death(task, failure, message).state
    if noted is None or noted.status is not Status.FAILED:
        return False
    log.warning("%s failed: %s, %s", task.run, noted.failure, noted.message)
    return True


def is_refusal(error: Exception) -> bool:
    """Whether SLURM took nothing for certain; after a time-out, or an answer that nobody understands, it may have."""
    return isinstance(error, FailedJobError) and "timed out" not in str(error)


@contextmanager
def without_foreign(flags: Iterable[str]) -> Iterator[None]:
    """Set aside a user's SBATCH_... variables that say other than the launcher does: they go before the script."""
    own = {"time": "TIMELIMIT", "mem": "MEM_PER_NODE"}
    names = [f"SBATCH_{name}" for name in (*FOREIGN, *(own.get(f, f.upper().replace("-", "_")) for f in flags))]
    aside = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(aside)


def packed(tasks: Sequence[Task], seconds: Sequence[float], most: float, longest: int) -> list[Sequence[Task]]:
    """Neighbours together, up to so many seconds and so many runs; in order, none left out."""
    packs: list[list[Task]] = []
    filled = 0.0
    for task, cost in zip(tasks, seconds, strict=True):
        if not packs or filled + cost > most or len(packs[-1]) >= longest:
            packs.append([])
            filled = 0.0
        packs[-1].append(task)
        filled += cost
    return list(packs)


def warning_seconds(minutes: int) -> int:
    """How long before the limit SLURM is to send its signal; a two-minute job keeps most of its time."""
    return max(10, min(90, minutes * 10))


def sbatch_flags(config: SlurmConfig) -> dict[str, Any]:
    """The resources of one job, by sbatch's names."""
    wanted = {
        "partition": config.partition,
        "time": config.time,
        "nodes": config.nodes,
        "ntasks-per-node": config.processes_per_node,
        "cpus-per-task": config.cpus,
        "gpus-per-node": config.gpus_per_node,
        "mem": config.mem,
    }
    extra = {str(name).replace("_", "-"): value for name, value in config.slurm.items()}
    return {**{name: value for name, value in wanted.items() if value}, **extra}


def make_executor(config: SlurmConfig, record: Submission) -> submitit.SlurmExecutor:
    executor = submitit.SlurmExecutor(record.logs, python=config.python or shlex.quote(sys.executable))
    flags = sbatch_flags(config)
    requeue = {} if "no-requeue" in flags else {"requeue": True}
    executor.update_parameters(
        job_name=record.name,
        time=flags.pop("time"),
        signal_delay_s=record.warning,
        array_parallelism=config.parallel or len(record.tasks),
        setup=[*config.setup, *setup_lines(config, record)],
        # srun does not take --cpus-per-task over from sbatch; a rank that lost another has to note it before it goes
        srun_args=[f"--cpus-per-task={config.cpus}", "--kill-on-bad-exit=0", *config.srun],
        additional_parameters={**flags, **requeue},
    )
    return executor


def setup_lines(config: SlurmConfig, record: Submission) -> list[str]:
    """Shell, before Python starts: is the record there, and may only the snapshot be imported."""
    path, threads = shlex.quote(str(record.path)), config.cpus
    lost = shlex.quote(f"error: {record.results} is not the folder that the jobs were submitted from, on node")
    return [
        f'grep -qs {record.token} {path} || {{ echo {lost} "$SLURMD_NODENAME" >&2; exit {UNSHARED}; }}',
        f'export PYTHONPATH={shlex.quote(record.code)}"${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONSAFEPATH=1',
        "export SLURM_EXPORT_ENV=ALL",  # or srun would follow a user's --export, and lose the two lines around this one
        f"export OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads} OPENBLAS_NUM_THREADS={threads}",
    ]


def complete_pickles(record: Submission, number: str) -> None:
    """What submitit would have put in place had it lived: the call that each task of the array waits for."""
    for index in range(len(record.tasks)):
        name = f"{number}_{index}" if len(record.tasks) > 1 else number
        path = JobPaths(record.logs, job_id=name).submitted_pickle
        if not path.exists():
            call = DelayedSubmission(do_task, str(record.path), index)
            call.set_timeout(record.minutes, 0)
            call.dump(path)


def reason_of(complaint: str) -> str:
    """SLURM's own words out of submitit's."""
    lines = [line.split("error:", 1)[1].strip() for line in complaint.splitlines() if "error:" in line]
    return "; ".join(dict.fromkeys(lines)) or next(iter(complaint.splitlines()), "no reason given")
