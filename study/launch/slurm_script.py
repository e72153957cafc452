"""What is sent to SLURM: a job's options, the environment they are said in, and the script around Python."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError, JobPaths

from study.launch.config import SlurmConfig
from study.launch.slurm_cluster import FULL
from study.launch.slurm_end import UNSHARED
from study.launch.slurm_job import do_task
from study.launch.slurm_record import Submission
from study.strict import ConfigError

FOREIGN = ("ARRAY_INX", "ERROR", "JOB_NAME", "NO_REQUEUE", "OPEN_MODE", "OUTPUT", "REQUEUE", "SIGNAL", "WAIT")
"""SBATCH_... variables that would overrule what the launcher itself says in the script."""

NAMES = {"time": "TIMELIMIT", "mem": "MEM_PER_NODE", "exclude": "EXCLUDE", "gpus-per-node": "GPUS_PER_NODE"}
"""Of variables that are not called as their options are."""

MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")
"""Options of which sbatch takes one; so said by a variable, another one contradicts ours."""


class FullError(ConfigError):
    """There is no room for another job in the queue."""


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


@contextmanager
def without_foreign(flags: Iterable[str]) -> Iterator[None]:
    """Set aside a user's SBATCH_... variables that say other than the launcher does: they go before the script.

    So do the amounts of memory of a job that we are in: srun would find them beside those of the new job.
    """
    said = set(flags)
    said |= set(MEMORY) if said & set(MEMORY) else set()
    names = [f"SBATCH_{name}" for name in (*FOREIGN, *map(_variable, said))]
    names += [f"SLURM_{_variable(name)}" for name in MEMORY]
    aside = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(aside)


def _variable(option: str) -> str:
    return NAMES.get(option, option.upper().replace("-", "_"))


def send(config: SlurmConfig, record: Submission) -> str:
    """Submit an array with this record; its number. A record of what SLURM refused is gone."""
    indexes = list(range(len(record.tasks)))
    try:
        with without_foreign(sbatch_flags(config)):
            executor = make_executor(config, record)
            jobs = executor.map_array(do_task, [str(record.path)] * len(indexes), indexes)
    except (FailedJobError, FailedSubmissionError) as error:
        said = reason_of(str(error))
        if not is_refusal(error):
            raise ConfigError(f"SLURM did not say whether it took an array ({said}): call again to find out") from error
        record.withdraw()
        if is_full(said):
            raise FullError(said) from error
        raise ConfigError(f"SLURM refused an array: {said}") from error
    return str(jobs[0].job_id).split("_")[0]


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


def is_refusal(error: Exception) -> bool:
    """Whether SLURM took nothing for certain; after a time-out, or an answer that nobody understands, it may have."""
    return isinstance(error, FailedJobError) and "timed out" not in str(error)


def is_full(complaint: str) -> bool:
    """Whether SLURM would take the very same job once others have ended."""
    return FULL in complaint


def reason_of(complaint: str) -> str:
    """SLURM's own words out of submitit's."""
    lines = [line.split("error:", 1)[1].strip() for line in complaint.splitlines() if "error:" in line]
    return "; ".join(dict.fromkeys(lines)) or next(iter(complaint.splitlines()), "no reason given")
