"""Asking SLURM: where jobs are, and whether it would take one. Answers are hints; the state files are the truth."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from study.strict import ConfigError, nearest

PATIENCE = 20.0  # seconds to wait for an answer
IN_QUEUE = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
OVER = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "LAUNCH_FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "RECONFIG_FAIL",
    "REVOKED",
    "TIMEOUT",
)
"""Any other state, also one that a later SLURM invents, may still come to something."""

FULL = "SubmitJob"  # in the names of all limits to how many jobs may be in the queue: AssocMaxSubmitJobLimit, ...
PASSING = ("down, drained or reserved", FULL)
"""In complaints about what passes: nodes that may come back, for which a job would wait; a queue that is full."""

UNHEARD = "node configuration is not available"  # what a controller says while it has not heard from its nodes
FRESH = 60.0  # seconds after its start in which it is asked again

WISHES = ("SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_", "SCONTROL_")
"""Variables in which a user says what these commands are to show, or end."""

COLUMNS = {
    "ArrayJobID": 20,
    "ArrayTaskID": 12,
    "JobID": 20,
    "State": 20,
    "RestartCnt": 12,
    "exit_code": 12,
    "Name": 80,
    "NodeList": 60,
}


@dataclass(frozen=True)
class Job:
    """One task of an array as SLURM sees it; a job that is no array is its own task 0."""

    array: str
    index: int
    number: str  # what SLURM_JOB_ID holds within it
    state: str
    restarts: int
    code: int  # its shell's exit code
    name: str
    nodes: str
    reason: str

    @property
    def is_open(self) -> bool:
        """Still in the queue or at work."""
        return self.state not in OVER

    @property
    def waits(self) -> bool:
        return self.state in IN_QUEUE


def ask(*command: str) -> str | None:
    """What a command of SLURM's says, or None if it is not there, fails, or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True, env=plain())
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def plain() -> dict[str, str]:
    """The environment without a user's wishes about what SLURM's answers hold and how they look."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(WISHES)}
    return {**kept, "SLURM_TIME_FORMAT": "standard"}


def check_installed() -> None:
    for program in ("sbatch", "srun", "squeue", "scontrol"):
        if shutil.which(program) is None:
            raise ConfigError(f"launcher=slurm: there is no {program} on this machine; launcher=local runs here")


def queue(users: Iterable[str] = ()) -> list[Job] | None:
    """All jobs of ours and of these users, also ended ones that SLURM remembers; None if it does not answer."""
    names = ",".join(sorted({getpass.getuser(), *users}))
    columns = ",".join([*(f"{name}:{width}" for name, width in COLUMNS.items()), "Reason:200"])
    told = ask("squeue", "-h", "-r", "-a", "-t", "all", "-u", names, "-O", columns)
    return None if told is None else [parse_job(line) for line in told.splitlines() if line.strip()]


def ended(numbers: Iterable[str]) -> list[Job]:
    """What accounting has of arrays that the controller has forgotten; nothing without accounting."""
    columns = "JobID,JobIDRaw,State,ExitCode,JobName,NodeList"
    told = ask("sacct", "-nPX", "-j", ",".join(numbers), "-o", columns) or ""
    return [parse_ended(line) for line in told.splitlines() if line.count("|") == columns.count(",")]


def parse_ended(line: str) -> Job:
    """A row of `ended`'s table; the state may say more, as in `CANCELLED by 0`."""
    name, number, state, code, job_name, nodes = line.split("|")
    array, _, index = name.partition("_")
    return Job(array, _number(index), number, state.split()[0], 0, _number(code.split(":")[0]), job_name, nodes, "")


def parse_job(line: str) -> Job:
    """A row of `queue`'s table, whose columns are of fixed width."""
    values, start = [], 0
    for width in COLUMNS.values():
        values.append(line[start : start + width].strip())
        start += width
    array, index, number, state, restarts, ending, name, nodes = values
    code = _number(ending) >> 8  # as wait(2) gives it
    reason = line[start:].strip()
    return Job(array, _number(index), number, state, _number(restarts), code, name, nodes, reason)


def _number(text: str) -> int:
    """SLURM writes N/A where there is none."""
    return int(text) if text.isdigit() else 0


def check_options(names: Iterable[str]) -> None:
    """Refuse what sbatch does not know, with the nearest that it does."""
    told = ask("sbatch", "--help")
    known = sorted(set(re.findall(r"--([a-z][a-z0-9-]+)", told or "")))
    for name in names:
        if known and name.replace("_", "-") not in known:
            hint = nearest(name.replace("_", "-"), known)
            hint = hint if "did you mean" in hint else "; `sbatch --help` lists all"
            raise ConfigError(f"slurm.{name} is no option of sbatch{hint}")


def refusal(flags: Mapping[str, object]) -> str:
    """What SLURM has against jobs with these options of sbatch; nothing if it would take them."""
    words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in flags.items()]
    complaint = _refusal(words)
    while UNHEARD in complaint and running_for() < FRESH:
        time.sleep(1.0)
        complaint = _refusal(words)
    return complaint


def _refusal(words: Sequence[str]) -> str:
    try:
        command = ["sbatch", "--test-only", *words, "--wrap=true"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return ""  # a slow controller is no refusal
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    told = re.sub(r"(?m)^(sbatch: )?(error: )?", "", done.stderr).strip().splitlines()
    passes = any(sign in line for line in told for sign in PASSING)
    return "" if done.returncode == 0 or passes else "; ".join(told)


def running_for() -> float:
    """Seconds since SLURM's controller was started; endless if it does not say."""
    told = re.search(r"(?m)^BOOT_TIME\s*= (\S+)", ask("scontrol", "show", "config") or "")
    try:
        return time.time() - datetime.fromisoformat(told[1]).timestamp() if told else float("inf")
    except ValueError:
        return float("inf")


def cancel(name: str) -> str:
    """What SLURM has against cancelling the jobs of this name; nothing if it agreed, or has none."""
    command = ["scancel", f"--name={name}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=plain())
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"


def this_job() -> str:
    """SLURM's number of the job this process is part of; empty outside of any."""
    return os.environ.get("SLURM_JOB_ID", "")


def this_task() -> str:
    """What SLURM's commands are to be told instead: the number of an array's last task means all of the array."""
    number, index = this_job(), os.environ.get("SLURM_ARRAY_TASK_ID", "")
    shared = bool(number) and os.environ.get("SLURM_ARRAY_JOB_ID") == number  # a job sent by an array inherits both
    return f"{number}_{index}" if shared else number


def this_restart() -> int:
    """How often SLURM started this job again before this time."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def this_rank() -> int:
    """Of this process among those of its job."""
    return int(os.environ.get("SLURM_PROCID", 0))
