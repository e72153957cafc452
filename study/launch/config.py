"""How runs are launched: typed, strict, and without a say in their numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from study.strict import ConfigError, at_least, from_tree, gathered, nearest, to_tree


@dataclass(frozen=True, kw_only=True)
class InlineConfig:
    """One run after another in this process: for debuggers and notebooks."""

    tries: int = 3  # of one run, per call, when a try ends through no fault of its own

    def __post_init__(self) -> None:
        at_least("tries", self.tries, 1)


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """A pool of worker processes on this machine."""

    workers: int = 0  # 0: one per GPU, or without GPUs one per `threads` CPUs
    threads: int = 1  # per worker: two workers of one thread beat one of two
    tries: int = 3

    def __post_init__(self) -> None:
        at_least("workers", self.workers, 0)
        at_least("threads", self.threads, 1)
        at_least("tries", self.tries, 1)


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """Job arrays on a cluster. What has no field here goes to sbatch through `slurm`, under sbatch's own name."""

    partition: str = ""  # "": the cluster's default
    time: int = 60  # minutes per job; a job that needs more saves itself, goes back to the queue and continues
    cpus: int = 1  # per process
    mem: str = ""  # per node, as sbatch writes it: 4G, 900M; "": the cluster's default
    gpus_per_node: int = 0
    nodes: int = 1
    tasks_per_node: int = 0  # processes per node that train one run together; 0: one per GPU, else one
    pack: int = 0  # runs that one job does one after another; 0: short ones together, up to ten minutes
    parallel: int = 0  # jobs of one array at a time; 0: as many as the cluster gives
    wait: bool = False  # follow until the end
    python: str = ""  # the command that starts Python on a node; "": this very interpreter
    setup: tuple[str, ...] = ()  # shell lines before it: module load ..., export ...
    srun: tuple[str, ...] = ()  # more arguments of srun
    slurm: Any = field(default_factory=dict)  # more options of sbatch: {account: a, gres: gpu:a100:1}
    tries: int = 3  # of one run, while following

    def __post_init__(self) -> None:
        for name, least in (("cpus", 1), ("nodes", 1), ("tries", 1), ("time", 2)):
            at_least(name, getattr(self, name), least)
        for name in ("gpus_per_node", "tasks_per_node", "pack", "parallel"):
            at_least(name, getattr(self, name), 0)
        if self.mem and not re.fullmatch(r"[1-9]\d*[KMGT]?", self.mem):
            raise ValueError(f"mem={self.mem!r} is not valid: must be a number with K, M, G or T behind it")
        if self.gpus_per_node and self.tasks_per_node > self.gpus_per_node:
            raise ValueError(
                f"tasks_per_node={self.tasks_per_node} is not valid: there are {self.gpus_per_node} gpus_per_node"
            )
        if self.processes > 1 and self.pack > 1:
            raise ValueError(f"pack={self.pack} is not valid: a run of {self.processes} processes has a job of its own")
        _check_options(self.slurm)

    @property
    def processes(self) -> int:
        """That train one run together."""
        return self.nodes * self.processes_per_node

    @property
    def processes_per_node(self) -> int:
        return self.tasks_per_node or self.gpus_per_node or 1


OWN = {
    "partition": "partition",
    "time": "time",
    "cpus-per-task": "cpus",
    "mem": "mem",
    "gpus-per-node": "gpus_per_node",
    "nodes": "nodes",
    "ntasks": "tasks_per_node",
    "ntasks-per-node": "tasks_per_node",
    "gpus": "gpus_per_node",
}
"""Options of sbatch that are fields of the launcher."""

TAKEN = (
    "array",
    "clusters",
    "cluster-constraint",
    "quiet",
    "job-name",
    "output",
    "error",
    "open-mode",
    "signal",
    "wrap",
    "chdir",
    "parsable",
    "wait",
    "test-only",
)
"""Options of sbatch that a launch sets itself, or could not work with."""


def _check_options(options: Any) -> None:
    if not isinstance(options, Mapping):
        raise ValueError(f"slurm={options!r} is not valid: must be a mapping of sbatch's options")
    for name, value in options.items():
        option = str(name).replace("_", "-")
        if option in OWN:
            raise ValueError(f"slurm.{name} is not valid: say launcher.{OWN[option]}")
        if option in TAKEN:
            raise ValueError(f"slurm.{name} is not valid: the launcher sets that itself")
        if option in ("setup", "srun-args"):
            raise ValueError(f"slurm.{name} is not valid: say launcher.{option.removesuffix('-args')}")
        if not isinstance(value, str | int | float | bool) or value is False:
            raise ValueError(f"slurm.{name}={value!r} is not valid: must be text, a number, or true for a bare option")


LauncherConfig = InlineConfig | LocalConfig | SlurmConfig
LAUNCHERS: dict[str, type[InlineConfig] | type[LocalConfig] | type[SlurmConfig]] = {
    "inline": InlineConfig,
    "local": LocalConfig,
    "slurm": SlurmConfig,
}


def launcher_from(given: Any) -> LauncherConfig:
    """`local`, or `{name: local, workers: 2}`; what is left out takes its default."""
    tree = {"name": given} if isinstance(given, str) else given
    if not isinstance(tree, Mapping):
        raise ConfigError(f"launcher={given!r} is not valid: must be a name or a mapping")
    rest = gathered(tree, ["slurm"])
    name = rest.pop("name", "local")
    if not isinstance(name, str) or name not in LAUNCHERS:
        raise ConfigError(f"launcher={name!r} is not valid{nearest(str(name), list(LAUNCHERS))}")
    return from_tree(LAUNCHERS[name], {**to_tree(LAUNCHERS[name]()), **rest}, "launcher")


def launcher_tree(config: LauncherConfig) -> dict[str, Any]:
    """The tree `launcher_from` reads back to an equal config."""
    name = next(name for name, kind in LAUNCHERS.items() if kind is type(config))
    return {"name": name, **to_tree(config)}
