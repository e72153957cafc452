"""What was submitted before: which runs have a job that is at work or may come, and how those ended that have none."""

from __future__ import annotations

import getpass
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from study.launch.slurm_cluster import Job
from study.launch.slurm_end import end_of
from study.launch.slurm_record import Place, Submission, all_open_records, is_over, jobs_of, look, places
from study.launch.slurm_script import complete_pickles
from study.launch.work import Task, record_death
from study.lease import newest
from study.run_directory import Status

log = logging.getLogger("study.sweep")

IN_FLIGHT = 30.0  # seconds after which a submission without a number will not get one by itself
QUEUED = "are queued or running already"
FAILED = "have failed meanwhile: study.status says why, --retry does them again"


@dataclass(frozen=True)
class Known:
    """The open submissions of a store, and what SLURM says of them at one moment."""

    folder: Path  # of the records of the sweep that asks
    cluster: str
    records: tuple[Submission, ...]
    jobs: list[Job] | None  # None: it does not answer
    resubmit: bool = False  # jobs that SLURM says nothing of count as gone

    @classmethod
    def now(cls, folder: Path, cluster: str, resubmit: bool = False) -> Known:
        records = all_open_records(folder.parent.parent)
        return cls(folder, cluster, tuple(records), look(records), resubmit)

    @property
    def queued(self) -> int:
        """Jobs of ours that SLURM has yet to finish."""
        return sum(job.is_open for job in self.jobs or ())

    @cached_property
    def places(self) -> dict[str, Place]:
        """By run."""
        return places(self.records, self.jobs)

    def awaited(self) -> set[str]:
        """Runs of which a job is still to come or at work, as far as SLURM says."""
        return {run for run, place in self.places.items() if self._may_come(place)}

    def workers(self) -> int:
        """Jobs at the sweep's search that may still find trials to do."""
        mine = [record for record in self.records if record.search and record.folder == str(self.folder)]
        return sum(self._may_come(place) and not self.resubmitted(place) for r in mine for place in r.places(self.jobs))

    def settled(self) -> Known:
        """The same, when records whose submitters died have got their jobs' numbers, or have gone."""
        found = [self._settled(record) for record in self.records]
        return replace(self, records=tuple(record for record in found if record is not None))

    def hold(self, task: Task) -> str:
        """Why a run is not to be sent; empty if it is. If a job had it and lost it, that is noted."""
        claim = newest(task.directory.path)
        if claim is not None and claim.held:
            return QUEUED
        place = self.places.get(task.run)
        if place is None:
            return ""
        if place.job is not None and place.job.is_open:
            return "" if failed_since(task, place.submission) else QUEUED
        if self._is_unknown(place.submission):
            return "" if self.resubmit else self._unknown(place.submission)
        return FAILED if note_end(task, place) else ""

    def close_ended(self) -> None:
        """Put away the records whose jobs have ended; how their runs ended is noted first."""
        for record in self.records:
            if self.jobs is not None and not self._is_unknown(record) and is_over(record, self.jobs):
                for run, place in places([record], self.jobs).items():
                    note_end(Task(record.results, run), place)
                record.close()

    def resubmitted(self, place: Place) -> bool:
        return self.resubmit and self._is_unknown(place.submission)

    def _settled(self, record: Submission) -> Submission | None:
        if record.job or self._is_silent(record) or self._is_others(record):
            return record
        number = next((job.array for job in jobs_of(record, self.jobs or [])), "")
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
        return record.user != getpass.getuser() or is_submitting(record)

    def _may_come(self, place: Place) -> bool:
        """Whether a job is open, or may be as far as is known."""
        return place.job.is_open if place.job is not None else self._is_unknown(place.submission)

    def _is_unknown(self, record: Submission) -> bool:
        """Whether SLURM's answer says nothing about it."""
        return not record.job or self._is_silent(record)

    def _is_silent(self, record: Submission) -> bool:
        return self.jobs is None or record.cluster != self.cluster

    def _unknown(self, record: Submission) -> str:
        """Why its runs are not to be sent."""
        if record.job or self._is_silent(record) or record.user == getpass.getuser() or is_submitting(record):
            return QUEUED
        return (
            f"are held by a call of {record.user} that ended before SLURM's answer: "
            f"--resubmit counts its jobs as gone, if squeue knows none called {record.name}"
        )


def is_submitting(record: Submission) -> bool:
    """Whether a call is submitting that sweep at this moment."""
    claim = newest(Path(record.folder))
    return claim is not None and claim.held


def let_arrive(records: Iterable[Submission]) -> None:
    """Wait until no array can be on its way to SLURM any more whose submitter died before it heard the number."""
    sent = max((record.submitted for record in records if not record.job), default=0.0)
    time.sleep(max(0.0, sent + IN_FLIGHT - time.time()))


def failed_since(task: Task, submission: Submission) -> bool:
    """Whether the run came to its end within this submission: its job will not do it again."""
    state = task.directory.read_state()
    return state.status is Status.FAILED and state.heartbeat > submission.submitted


def was_begun(task: Task, submission: Submission) -> bool:
    """Whether a job of this submission came as far as to begin the run."""
    state = task.directory.read_state()
    return state.status is Status.RUNNING or state.heartbeat > submission.submitted


def note_end(task: Task, place: Place) -> bool:
    """A job ended without saying how its run did: SLURM's word for it goes into the run's state. True if by that
    the run has failed, so that only somebody's wish tries it again."""
    state = task.directory.read_state()
    said = state.status is not Status.RUNNING and state.heartbeat > place.submission.submitted
    if state.status is Status.DONE or said or went_with_another(task, place):
        return False
    noted = record_death(task, *end_of(place)).state
    if noted is None or noted.status is not Status.FAILED:
        return False
    log.warning("%s failed: %s, %s", task.run, noted.failure, noted.message)
    return True


def went_with_another(task: Task, place: Place) -> bool:
    """Whether the run was never begun, for its job ended while at another one: no try of its own."""
    others = [Task(task.results, run) for run in place.submission.tasks[place.index] if run != task.run]
    return not was_begun(task, place.submission) and any(was_begun(other, place.submission) for other in others)
