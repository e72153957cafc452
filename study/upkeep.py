"""Looking after a store: check it, tidy it, carry it over a change of keys, hand it to others."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from study.atomic import write_json, write_text
from study.lease import newest, take
from study.marked_yaml import yaml_value
from study.results import read_rows
from study.run_directory import RunDirectory, Status, read_curve
from study.strict import ConfigError
from study.strict_json import parse_json
from study.unscored import read_unscored

if TYPE_CHECKING:  # pruning must not wait for torch
    from study.config import RunConfig

ALWAYS = ("val_loss", "params", "gmacs", "train_seconds")  # what every run that is done has a row of
LEFTOVER_AGE = 3600.0  # seconds after which a temporary file has no writer any more


@dataclass(frozen=True)
class Fault:
    """Something wrong with one run."""

    run: str
    what: str

    def __str__(self) -> str:
        return f"{self.run}: {self.what}"


def verify(results: Path) -> list[Fault]:
    """Every run whose files contradict one another, its name, or the schema."""
    return [Fault(folder.name, what) for folder in _runs(results) for what in _faults(folder)]


def prune(results: Path, checkpoints: bool) -> list[Path]:
    """Remove what nothing needs: killed writers' leftovers, set-aside attempts, checkpoints of finished runs."""
    removed = []
    for folder in _runs(results):
        claim = newest(folder)
        if claim is not None and claim.held:
            continue
        for path in _expendable(folder, checkpoints):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            removed.append(path)
    return removed


def migrate(results: Path, added: dict[str, Any], renamed: dict[str, str]) -> list[tuple[str, str]]:
    """Carry finished runs over to the present keys: `added` ones with the value that old runs had in effect,
    `renamed` ones with the value they had. A run gets its new id; pairs of (old, new) come back.
    """
    moved = []
    for folder in list(_runs(results)):
        new = _migrated(folder, added, renamed)
        if new is not None and new != folder.name:
            moved.append((folder.name, new))
    return moved


def _runs(results: Path) -> Iterator[Path]:
    if not (results / "runs").is_dir():
        raise ConfigError(f"{results} is no result store: {results / 'runs'} is not there")
    yield from sorted(path for path in (results / "runs").iterdir() if path.is_dir())


def _faults(folder: Path) -> Iterator[str]:
    from study.config import run_id
    from study.run_directory import load_config

    directory = RunDirectory(folder.parent.parent, folder.name)
    try:
        state = directory.read_state()
        rows = read_rows(directory.rows)
        config = load_config(directory.config)
    except (ValueError, OSError) as error:
        yield str(error)
        return
    if state.status is Status.DONE:
        yield from _lost(directory, config, {row.metric for row in rows})
    if run_id(config) != folder.name:
        yield f"its config now means run {run_id(config)}: a default, a key or a version has changed since"
    strangers = sorted({row.run for row in rows} - {folder.name})
    if strangers:
        yield f"has rows of {', '.join(strangers)}"
    keys = [(row.metric, row.protocol) for row in rows]
    for metric, protocol in sorted({key for key in keys if keys.count(key) > 1}):
        yield f"has {metric} under {protocol} twice"
    for leftover in _leftovers(folder):
        yield f"a killed writer left {leftover.relative_to(folder)}"


def _lost(directory: RunDirectory, config: RunConfig, metrics: set[str]) -> Iterator[str]:
    """What a finished run left behind and has no more."""
    if not metrics:
        yield "is done and has no rows"
    elif absent := sorted(set(ALWAYS) - metrics):
        yield f"is done and has no row of {', '.join(absent)}"
    elif empty := _unexplained(directory, config, metrics):
        yield f"has neither a row of {', '.join(empty)} nor a reason: a sweep that asks for it scores it again"
    for check in (_curve_fault, _provenance_fault):
        try:
            fault = check(directory, config)
        except OSError as error:
            fault = f"{error.filename} cannot be read: {error.strerror}"
        except ValueError as error:
            fault = str(error)
        if fault:
            yield fault


def _unexplained(directory: RunDirectory, config: RunConfig, metrics: set[str]) -> list[str]:
    """Scores asked for that there is nothing of."""
    if not config.score.metrics:
        return []
    from study.score.foresight import full_name

    asked = [full_name(metric, config.data, config.sample.count) for metric in config.score.metrics]
    return [name for name in asked if name not in metrics | read_unscored(directory.unscored).keys()]


def _curve_fault(directory: RunDirectory, config: RunConfig) -> str:
    """The last point is the validation that the rows were made of."""
    points = read_curve(directory.curve)
    reached = points[-1]["images"] if points else 0
    return f"its curve ends at {reached} of {config.train.images} images" if reached < config.train.images else ""


def _provenance_fault(directory: RunDirectory, config: RunConfig) -> str:
    try:
        attempts = parse_json(directory.provenance.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{directory.provenance} is damaged: {error}") from error
    whole = isinstance(attempts, list) and attempts and all(isinstance(facts, dict) for facts in attempts)
    return "" if whole else f"{directory.provenance} is damaged: it must be a list with a mapping for every attempt"


def _expendable(folder: Path, checkpoints: bool) -> Iterator[Path]:
    yield from _leftovers(folder)
    yield from folder.glob("old-*")
    done = RunDirectory(folder.parent.parent, folder.name).read_state().status is Status.DONE
    if checkpoints and done and (folder / "checkpoint").exists():
        yield folder / "checkpoint"


def _leftovers(folder: Path) -> list[Path]:
    old = time.time() - LEFTOVER_AGE
    return [path for path in folder.rglob(".*.tmp") if path.stat().st_mtime < old]


def _migrated(folder: Path, added: dict[str, Any], renamed: dict[str, str]) -> str | None:
    """The run's new id, or its old one if that does not hear of the change; None if the run is unfinished or in use."""
    from study.config import from_dict, run_id, to_dict

    directory = RunDirectory(folder.parent.parent, folder.name)
    if directory.read_state().status is not Status.DONE:
        return None
    tree = yaml.safe_load(directory.config.read_text(encoding="utf-8"))
    if not _carry_over(tree, added, renamed):
        return None
    config = from_dict(tree)
    new = RunDirectory(folder.parent.parent, run_id(config))
    lease = take(folder)
    if lease is None or (new.path.exists() and new.path != folder):
        return None
    note = {"from": folder.name, "added": added, "renamed": renamed}
    if new.path == folder:
        with lease:
            write_text(directory.config, yaml.safe_dump(to_dict(config), sort_keys=False))
            write_json(folder / "migrated.json", note)
        return folder.name
    with lease:
        copy = new.path.with_name(f".{new.identity}.tmp")
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("leases", "checkpoint", "old-*"))
        write_text(copy / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
        rows = [json.loads(line) for line in (copy / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
        write_text(copy / "rows.jsonl", "".join(json.dumps({**row, "run": new.identity}) + "\n" for row in rows))
        write_json(copy / "migrated.json", note)
        copy.rename(new.path)
    shutil.rmtree(folder)
    return new.identity


def _carry_over(tree: dict[str, Any], added: dict[str, Any], renamed: dict[str, str]) -> bool:
    """Change the tree in place; whether anything changed."""
    changed = False
    for old, new in renamed.items():
        parent, leaf = _inside(tree, old)
        if parent is not None and leaf in parent:
            target, name = _inside(tree, new)
            if target is None:
                raise ConfigError(f"{old}->{new}: there is no section for {new}")
            target[name] = parent.pop(leaf)
            changed = True
    for key, value in added.items():
        parent, leaf = _inside(tree, key)
        if parent is not None and leaf not in parent:
            parent[leaf] = value
            changed = True
    return changed


def _inside(tree: dict[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
    """The mapping that holds, or would hold, a dotted key."""
    *parents, leaf = key.split(".")
    here: Any = tree
    for parent in parents:
        here = here.get(parent) if isinstance(here, dict) else None
    return (here if isinstance(here, dict) else None), leaf


def changes(words: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """`train.new=0` and `train.old->train.new` as what `migrate` takes."""
    added: dict[str, Any] = {}
    renamed: dict[str, str] = {}
    for word in words:
        old, arrow, new = word.partition("->")
        key, equals, value = word.partition("=")
        if arrow:
            renamed[old] = new
        elif equals:
            added[key] = yaml_value(key, value)
        else:
            raise ConfigError(
                f"{word!r} is no change: write KEY=VALUE for a key that is new, OLD->NEW for a renamed one"
            )
    if not words:
        raise ConfigError("migrate: say what changed, as KEY=VALUE or OLD->NEW")
    return added, renamed
