"""What one run leaves on disk, and how each file survives a kill at any moment."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import time
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from study.atomic import remove_leftovers, sync, write_json, write_text
from study.strict import ConfigError, from_tree, to_tree
from study.strict_json import parse_json

if TYPE_CHECKING:  # at run time only where needed: reading states must not wait for torch
    from study.config import RunConfig

log = logging.getLogger(__name__)


class Status(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Failure(StrEnum):
    """Why a run did not finish; each class has its own retry rule."""

    BAD_CONFIG = "bad config"
    OUT_OF_MEMORY = "out of memory"
    DIVERGED = "diverged"
    TIMED_OUT = "timed out"
    PREEMPTED = "preempted"
    STOPPED = "stopped"  # by its user
    NODE_LOST = "node lost"
    KILLED = "killed"
    PRUNED = "pruned"  # by a search that saw better; it can be continued
    STORAGE = "storage"  # disk full, quota, file system gone
    BUG = "bug"


RESUMED = (Failure.STORAGE,)
"""Failures that say nothing against the run: the next call continues it without being asked, once."""


@dataclass(frozen=True)
class State:
    """`state.json`: what a run is doing, or how it ended."""

    status: Status = Status.PENDING
    attempts: int = 0
    images: int = 0  # trained on, at the last heartbeat
    failure: Failure | None = None
    message: str | None = None
    heartbeat: float = 0.0  # seconds since 1970
    host: str = ""
    pid: int = 0


class RunDirectory:
    """`results/runs/<id>/`. Every file is replaced whole, or appended to by the one process that runs it."""

    def __init__(self, results: str | Path, identity: str) -> None:
        self.identity = identity
        self.path = Path(results) / "runs" / identity
        self.config = self.path / "config.yaml"
        self.state = self.path / "state.json"
        self.curve = self.path / "curve.jsonl"
        self.speed = self.path / "speed.jsonl"  # images/s and utilisation: what may differ between two executions
        self.rows = self.path / "rows.jsonl"
        self.samples = self.path / "samples"
        self.grid = self.path / "samples.png"
        self.unscored = self.path / "unscored.json"  # {metric: why it has no row}
        self.checkpoints = self.path / "checkpoint"
        self.log = self.path / "log.txt"
        self.provenance = self.path / "provenance.json"

    @classmethod
    def of(cls, config: RunConfig) -> RunDirectory:
        from study.config import run_id

        return cls(config.results, run_id(config))

    def create(self, config: RunConfig) -> None:
        """Make the folder, with the config frozen in it; an existing one is cleaned of a killed run's leftovers."""
        is_new = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for folder in (self.path, self.samples):
                remove_leftovers(folder)
            if not self.config.exists():
                from study.config import to_dict

                write_text(self.config, yaml.safe_dump(to_dict(config), sort_keys=False))
        except OSError as error:
            if is_new:
                shutil.rmtree(self.path, ignore_errors=True)
            raise ConfigError(f"results={config.results!r} is not writable: {error.strerror or error}") from error

    def read_state(self) -> State:
        try:
            text = self.state.read_text(encoding="utf-8")
            return from_tree(State, parse_json(text), "state") if text else State()  # empty: the power went
        except (FileNotFoundError, NotADirectoryError):
            return State()
        except OSError as error:
            raise ConfigError(f"{self.state} cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise ConfigError(f"{self.state} is not a run state: {error}") from error

    def write_state(self, state: State, **changes: Any) -> State:
        """Record a change, stamped with the moment and the process."""
        known = {field.name for field in fields(State)}
        assert changes.keys() <= known
        stamped = replace(state, heartbeat=time.time(), host=platform.node(), pid=os.getpid(), **changes)
        write_json(self.state, to_tree(stamped), lasting=stamped.status is not Status.RUNNING)
        return stamped

    def add_provenance(self, attempt: int, facts: dict[str, str]) -> None:
        """One entry per attempt: a run may have been continued elsewhere."""
        text = self.provenance.read_text(encoding="utf-8") if self.provenance.exists() else ""
        earlier = json.loads(text) if text else []
        write_json(self.provenance, [*earlier, {"attempt": str(attempt), **facts}], lasting=False)


def load_config(path: Path) -> RunConfig:
    """The run frozen in a `config.yaml`."""
    from study.config import from_dict

    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} is not a run config: must be a mapping")
    try:
        return from_dict(tree)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


class Curve:
    """`curve.jsonl`: one line per interval, and nothing in it that differs between two executions of a run."""

    def __init__(self, path: Path, keep: int) -> None:
        """Open for appending after the first `keep` lines: those written before the checkpoint."""
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        if len(whole) < keep:
            log.warning("%s lacks %d of the %d lines before the checkpoint", path, keep - len(whole), keep)
        write_text(path, "".join(whole[:keep]), lasting=keep > 0)
        self.path = path
        self.lines = min(keep, len(whole))
        self._file = path.open("a", encoding="utf-8")

    def append(self, point: dict[str, Any]) -> None:
        self._file.write(json.dumps(point, allow_nan=False) + "\n")
        self._file.flush()
        self.lines += 1

    def sync(self) -> None:
        sync(self.path)

    def close(self) -> None:
        self._file.close()


def read_curve(path: Path) -> list[dict[str, Any]]:
    """Every point of a file; a line that is none is refused by its number."""
    points = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            point = parse_json(line)
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: {error}") from error
        if not isinstance(point, dict) or "images" not in point or not all(map(_is_number, point.values())):
            raise ConfigError(f"{path}:{number}: a point must be a mapping of numbers, `images` among them")
        points.append(point)
    return points


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
