"""How much a cluster takes: of one array, of one queue, and of one user under the account and QOS that jobs go by."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from study.launch.slurm_cluster import ask
from study.strict import ConfigError


@dataclass(frozen=True)
class Cap:
    """At most so many jobs of one user in the queue, counted by an account or a QOS."""

    jobs: int
    counted: str  # the option of squeue that shows those it counts


@dataclass(frozen=True)
class Limits:
    """Of one cluster, for one user and one kind of job."""

    cluster: str
    array: int  # tasks in one array
    jobs: int  # in the whole queue
    cap: Cap | None = None

    def room(self, queued: int) -> int:
        """How many more jobs fit, where the user has so many on the whole cluster."""
        left = self.jobs - queued
        if self.cap is not None:
            told = ask("squeue", "-h", "-r", "-a", "-u", getpass.getuser(), self.cap.counted, "-o", "%i")
            left = min(left, self.cap.jobs - (queued if told is None else len(told.splitlines())))
        return max(0, left)

    @property
    def most(self) -> int:
        """Jobs that can be in the queue at once."""
        return min(self.jobs, self.cap.jobs) if self.cap else self.jobs


def limits(flags: Mapping[str, object] | None = None) -> Limits:
    """What the cluster allows for jobs with these options of sbatch, in its own words."""
    config = ask("scontrol", "show", "config")
    if config is None:
        raise ConfigError("launcher=slurm: SLURM's controller does not answer (scontrol show config)")
    values = dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", config, re.MULTILINE))
    array = [int(values.get("MaxArraySize", 1001))]
    array += [int(most) for most in re.findall(r"max_array_tasks=(\d+)", values.get("SchedulerParameters", ""))]
    name = values.get("ClusterName", "")
    accounted = values.get("AccountingStorageType", "").endswith("slurmdbd")
    cap = Accounts(name, flags or {}).cap() if accounted else None
    return Limits(name, max(1, min(array)), int(values.get("MaxJobCount", 10_000)), cap)


class Accounts:
    """What accounting says of the account, QOS and partition that a job would get."""

    def __init__(self, cluster: str, flags: Mapping[str, object]) -> None:
        self.cluster, self.flags, self.user = cluster, flags, getpass.getuser()

    def cap(self) -> Cap | None:
        """The first that is set: SLURM asks the partition's QOS, the job's own, and then the association."""
        for qos in (self._partition.get("QoS", ""), self.qos):
            most = self._of_qos.get(qos, "")
            if most.isdigit():
                return Cap(int(most), f"--qos={qos}")
        most = self._association[2] if self._association else ""
        return Cap(int(most), f"--account={self.account}") if most.isdigit() else None

    @cached_property
    def account(self) -> str:
        """Asked for, or the user's default."""
        if wanted := self._wanted("account"):
            return wanted
        told = ask("sacctmgr", "-nP", "show", "user", self.user, "format=DefaultAccount") or ""
        return next(iter(told.split()), "")

    @property
    def qos(self) -> str:
        """Asked for, or the association's default, or the only one there is."""
        if (wanted := self._wanted("qos")) or self._association is None:
            return wanted
        _, _, _, names, default = self._association
        return default or (names if "," not in names else "normal")

    @cached_property
    def _association(self) -> Sequence[str] | None:
        """Account, partition, MaxSubmitJobs, QOS and default QOS; one for the very partition goes before the rest."""
        columns = "format=Account,Partition,MaxSubmitJobs,QOS,DefaultQOS"
        where = (f"user={self.user}", f"cluster={self.cluster}", f"account={self.account}")
        rows = _table(ask("sacctmgr", "-nP", "show", "assoc", "where", *where, columns), 5)
        fitting = [row for row in rows if row[1] in ("", self._partition.get("PartitionName", ""))]
        return max(fitting, key=lambda row: len(row[1]), default=None)

    @cached_property
    def _of_qos(self) -> dict[str, str]:
        """MaxSubmitJobsPerUser by QOS."""
        rows = _table(ask("sacctmgr", "-nP", "show", "qos", "format=Name,MaxSubmitJobsPerUser"), 2)
        return dict(rows)

    @cached_property
    def _partition(self) -> dict[str, str]:
        """The one asked for, or the cluster's default."""
        wanted = self._wanted("partition").split(",")[0]
        for line in (ask("scontrol", "-o", "show", "partition") or "").splitlines():
            found = dict(word.split("=", 1) for word in line.split() if "=" in word)
            if found.get("PartitionName") == wanted or (not wanted and found.get("Default") == "YES"):
                return found
        return {}

    def _wanted(self, option: str) -> str:
        """By the launcher, or else by the variable that sbatch reads."""
        return str(self.flags.get(option, "") or os.environ.get(f"SBATCH_{option.upper()}", ""))


def _table(told: str | None, columns: int) -> list[list[str]]:
    rows = [line.split("|") for line in (told or "").splitlines()]
    return [row for row in rows if len(row) == columns]
