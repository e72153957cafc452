"""How a job ended that can no longer say so itself."""

from __future__ import annotations

import re

from study.launch.slurm_cluster import Job
from study.launch.slurm_record import Place
from study.run_directory import Failure

ENDS = {
    "TIMEOUT": (Failure.TIMED_OUT, "SLURM ended its job at the time limit"),
    "DEADLINE": (Failure.TIMED_OUT, "SLURM ended its job at the deadline"),
    "CANCELLED": (Failure.STOPPED, "its job was cancelled"),
    "NODE_FAIL": (Failure.NODE_LOST, "its node was lost"),
    "BOOT_FAIL": (Failure.NODE_LOST, "its node did not start"),
    "PREEMPTED": (Failure.PREEMPTED, "its job made room for another"),
    "OUT_OF_MEMORY": (Failure.OUT_OF_MEMORY, "its job needed more memory than launcher.mem"),
}
LAST_BYTES = 4096  # of a log
UNSHARED = 66  # exit code of a job that does not see the folder it was submitted from (EX_NOINPUT)


def end_of(place: Place) -> tuple[Failure, str]:
    """The class of a run's end, from SLURM's word about its job, and one line for people."""
    number = f"{place.submission.job}_{place.index}"
    job = place.job
    if place.submission.cancelled:
        return Failure.STOPPED, f"job {number} was cancelled"
    if job is None:
        return Failure.NODE_LOST, f"SLURM no longer knows job {number}"
    if job.state in ENDS:
        failure, message = ENDS[job.state]
        return failure, f"{message} ({number}{where(job)})"
    if job.reason == "JobLaunchFailure" or job.code == UNSHARED:
        how = "could not be started" if job.code != UNSHARED else "found no record of itself"
        return Failure.KILLED, f"job {number} {how}{where(job)}: is {place.submission.results} shared with that node?"
    if place.submission.processes > 1:
        return Failure.NODE_LOST, f"one of the {place.submission.processes} processes of job {number} was lost"
    return Failure.KILLED, last_complaint(place) or f"job {number} left with exit code {job.code}{where(job)}"


def where(job: Job) -> str:
    return f" on {job.nodes}" if job.nodes else ""


def last_complaint(place: Place) -> str:
    """The newest line of the job's log that tells of an error."""
    try:
        with place.log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - LAST_BYTES))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    told = [line for line in lines if re.search(r"\b(error|Error|Killed|fault)\b", line)]
    return told[-1].strip() if told else ""
