"""What was submitted: `results/<sweep>/slurm/<token>.json`, one per array, so that no job is forgotten or doubled.

A record is written before its array is submitted and completed after; the token is in the job's name, by
which an array can be found whose submitter died in between. It moves to `over/` when its jobs have ended.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from study.atomic import write_json
from study.launch.slurm_cluster import Job, ended, queue
from study.strict import ConfigError, from_tree
from study.strict_json import parse_json


@dataclass(frozen=True)
class Submission:
    """One array: which runs each of its tasks is to do, and what SLURM called it."""

    folder: str  # results/<sweep>/slurm, absolute
    token: str
    job: str  # SLURM's number; empty until it said one
    tasks: tuple[tuple[str, ...], ...]  # run ids
    submitted: float  # seconds since 1970
    cluster: str
    user: str
    minutes: int  # time limit
    warning: int  # seconds before the limit at which SLURM is asked to send its signal
    processes: int
    code: str  # folder of the snapshot
    cancelled: float = 0.0  # seconds since 1970; 0: not by us
    search: str = ""  # of jobs that take their runs from a search: its sweep file
    retry: tuple[str, ...] = ()  # there: failures after which a run of the store is done again

    @property
    def path(self) -> Path:
        return Path(self.folder) / f"{self.token}.json"

    @property
    def name(self) -> str:
        """Of the job, for squeue."""
        return f"{Path(self.folder).parent.name}.{self.token}"

    @property
    def results(self) -> str:
        return str(Path(self.folder).parent.parent)

    @property
    def logs(self) -> Path:
        return Path(self.folder) / "logs"

    def places(self, queue: list[Job] | None) -> list[Place]:
        """Of each of its tasks."""
        jobs = {job.index: job for job in jobs_of(self, queue or [])}
        return [Place(self, index, jobs.get(index)) for index in range(len(self.tasks))]

    def write(self) -> Submission:
        write_json(self.path, asdict(self))
        return self

    def changed(self, **changes: object) -> Submission:
        return replace(self, **changes).write()  # type: ignore[arg-type]

    def withdraw(self) -> None:
        """It was never submitted."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """All of its jobs have ended, and their ends are noted."""
        over = self.path.parent / "over"
        with suppress(FileNotFoundError, PermissionError):  # somebody else was faster, or it is not ours to move
            over.mkdir(exist_ok=True)
            self.path.replace(over / self.path.name)


@dataclass(frozen=True)
class Place:
    """Where a run is in the queue: task `index` of `submission`, which SLURM sees as `job`."""

    submission: Submission
    index: int
    job: Job | None

    @property
    def log(self) -> Path:
        """What the task printed."""
        number = self.submission.job
        name = f"{number}_{self.index}" if len(self.submission.tasks) > 1 else number
        return self.submission.logs / f"{name}_0_log.err"


ADDED: dict[str, Any] = {"search": "", "retry": []}
"""What records did not always have: jobs may be queued for longer than a version of this code lasts."""


def new_token() -> str:
    return uuid.uuid4().hex[:8]


def read_record(path: Path) -> Submission:
    try:
        return _read(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is not there: is this folder shared with the machine that submitted?") from error


def _read(path: Path) -> Submission:
    try:
        return from_tree(Submission, {**ADDED, **parse_json(path.read_text(encoding="utf-8"))}, "record")
    except FileNotFoundError:
        raise
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is not a record of a submission: {error}") from error


def open_records(folder: Path) -> list[Submission]:
    """The submissions of one sweep that may have jobs, oldest first; `folder` is results/<sweep>."""
    found = []
    for path in (folder / "slurm").glob("*.json"):
        with suppress(FileNotFoundError):  # closed by another process at this moment
            found.append(_read(path))
    return sorted(found, key=lambda record: record.submitted)


def all_open_records(results: Path) -> list[Submission]:
    """Of every sweep of a store, oldest first: sweeps may share runs."""
    folders = sorted({path.parent.parent for path in results.glob("*/slurm/*.json")})
    found = [record for folder in folders for record in open_records(folder)]
    return sorted(found, key=lambda record: record.submitted)


def look(records: Sequence[Submission]) -> list[Job] | None:
    """Every job of these submissions that SLURM knows of, in one question, or two where some have long ended."""
    jobs = queue(record.user for record in records)
    if jobs is None:
        return None
    known = {(job.name, job.index) for job in jobs}
    gone = {record.job for record in records for i in range(len(record.tasks)) if (record.name, i) not in known}
    told = ended(sorted(gone - {""})) if gone - {""} else []
    # a row that accounting never heard the end of stays open for ever: of what waits or works squeue knows
    return jobs + [job for job in told if not job.is_open and (job.name, job.index) not in known]


def places(records: Iterable[Submission], queue: list[Job] | None) -> dict[str, Place]:
    """By run id, the newest place of each run; of a silent SLURM, places without jobs.

    Jobs are known by their names: numbers come again, on another cluster or after years.
    """
    by_name: dict[str, list[Job]] = {}
    for job in queue or ():
        by_name.setdefault(job.name, []).append(job)
    found: dict[str, Place] = {}
    for record in records:
        for place in record.places(by_name.get(record.name)):
            found.update(dict.fromkeys(record.tasks[place.index], place))
    return found


def is_over(record: Submission, queue: list[Job]) -> bool:
    """Whether SLURM has nothing left to do of it."""
    return not any(job.is_open for job in jobs_of(record, queue))


def jobs_of(record: Submission, queue: list[Job]) -> Iterator[Job]:
    return (job for job in queue if job.name == record.name)


def slurm_folder(sweep: Path) -> Path:
    """Where the records of the sweep in `results/<sweep>` go."""
    return Path(os.path.abspath(sweep)) / "slurm"
