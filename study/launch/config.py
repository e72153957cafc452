"""How runs are launched: typed, strict, and without a say in their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from study.strict import ConfigError, from_tree, nearest, to_tree


@dataclass(frozen=True, kw_only=True)
class InlineConfig:
    """One run after another in this process: for debuggers and notebooks."""

    tries: int = 3  # of one run, per call, when a try ends through no fault of its own

    def __post_init__(self) -> None:
        _at_least("tries", self.tries, 1)


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """A pool of worker processes on this machine."""

    workers: int = 0  # 0: one per GPU, or without GPUs one per `threads` CPUs
    threads: int = 1  # per worker: two workers of one thread beat one of two
    tries: int = 3

    def __post_init__(self) -> None:
        _at_least("workers", self.workers, 0)
        _at_least("threads", self.threads, 1)
        _at_least("tries", self.tries, 1)


LauncherConfig = InlineConfig | LocalConfig
LAUNCHERS: dict[str, type[InlineConfig] | type[LocalConfig]] = {"inline": InlineConfig, "local": LocalConfig}


def launcher_from(given: Any) -> LauncherConfig:
    """`local`, or `{name: local, workers: 2}`; what is left out takes its default."""
    tree = {"name": given} if isinstance(given, str) else given
    if not isinstance(tree, Mapping):
        raise ConfigError(f"launcher={given!r} is not valid: must be a name or a mapping")
    rest = dict(tree)
    name = rest.pop("name", "local")
    if name not in LAUNCHERS:
        raise ConfigError(f"launcher={name!r} is not valid{nearest(str(name), list(LAUNCHERS))}")
    return from_tree(LAUNCHERS[name], {**to_tree(LAUNCHERS[name]()), **rest}, "launcher")


def launcher_tree(config: LauncherConfig) -> dict[str, Any]:
    """The tree `launcher_from` reads back to an equal config."""
    name = next(name for name, kind in LAUNCHERS.items() if kind is type(config))
    return {"name": name, **to_tree(config)}


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}={value!r} is not valid: must be {least} or more")
