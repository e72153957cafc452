"""Files of text that somebody, or a dying disk, has changed: each is read as it is or refused with a ConfigError."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import yaml
from hypothesis import given

from study.compose import resolve
from study.config import run_id, to_dict
from study.plan import make_plan
from study.plan_file import read_plan, read_runs
from study.results import Row, read_rows
from study.run_directory import RunDirectory, State, load_config, read_curve
from study.strict import to_tree
from study.sweep_file import read_sweep
from study.trials_file import read_trials
from tests.fuzz.mutations import as_json, bytes_like, place, scaled, trees_like, works_or_refuses

ROOT = Path(__file__).parents[2]
SWEEPS = [
    (ROOT / "sweeps" / f"{name}.yaml").read_bytes()
    for name in ("ablate_M", "pareto_MP", "tune_lr", "bench_small", "hourglass_reading")
]
SMALL = b"""\
# Which?
defaults: [backbone: diffussm-tiny, data: digits8, train: quick, sample: none]
overrides: {train.images: 640}
axes:
  backbone.M: [1, 2, 4]
  seed: [0, 1]
zip: [{train.lr: [1e-3, 2e-3], train.batch: [32, 64]}]
exclude: [{backbone.M: 4, seed: 1}]
baseline: {backbone.M: 1}
launcher: {name: local, workers: 2}
"""
SWEEP_TREES = [yaml.safe_load(text) for text in (SMALL, *SWEEPS)]
CONFIGS = [
    to_dict(resolve(["backbone=diffussm-tiny", "data=digits8", "train=quick"])),
    to_dict(resolve(["backbone=unet-tiny", "data=glyphs16", "score=quick", "process=cosine"])),
]
STATES = [to_tree(State()), {**to_tree(State()), "status": "failed", "failure": "bug", "message": "m", "attempts": 2}]
ROWS = [
    Row(run="0" * 16, metric="val_loss", value=0.5, units="", n=10, protocol="val-1", interval=(0.1, 0.9)),
    Row(run="0" * 16, metric="gmacs", value=1.5, units="GMAC", n=1, protocol="cost-1", provenance={"code": "x"}),
]
ROW_LINES = b"".join(as_json(to_tree(row)) + b"\n" for row in ROWS)
CURVE = b'{"images": 64, "loss": 1.0}\n{"images": 128, "loss": 0.5, "val_loss": 0.7}\n'
PLANS = [
    json.loads((ROOT / "results" / "published" / name / "plan.json").read_text(encoding="utf-8"))
    for name in ("ablate_M", "tune_lr")
]


def read_once(name: str, data: bytes, read: Callable[[Path], object], *refusals: type[Exception]) -> bool:
    with place({name: data}) as folder:
        return works_or_refuses(lambda: read(folder / name), *refusals)


def planned(path: Path) -> None:
    sweep = read_sweep(path)
    if not sweep.search and not sweep.tuned:
        make_plan(sweep)


@scaled(20)
@given(bytes_like([SMALL, *SWEEPS]))
def test_sweep_files_as_text(data: bytes) -> None:
    read_once("sweep.yaml", data, planned)


@scaled(20)
@given(trees_like(SWEEP_TREES))
def test_sweep_files_as_trees(tree: object) -> None:
    read_once("sweep.yaml", yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode(), planned)


def composed(path: Path) -> None:
    run_id(load_config(path))


@scaled(30)
@given(bytes_like([yaml.safe_dump(tree, sort_keys=False).encode() for tree in CONFIGS]))
def test_run_configs_as_text(data: bytes) -> None:
    read_once("config.yaml", data, composed)


@scaled(30)
@given(trees_like(CONFIGS))
def test_run_configs_as_trees(tree: object) -> None:
    read_once("config.yaml", yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode(), composed)


def state_of(path: Path) -> State:
    return RunDirectory(path.parents[2], path.parent.name).read_state()


@scaled(40)
@given(bytes_like([as_json(tree) for tree in STATES]))
def test_states_as_text(data: bytes) -> None:
    read_once("runs/0/state.json", data, state_of)


@scaled(40)
@given(trees_like(STATES))
def test_states_as_trees(tree: object) -> None:
    read_once("runs/0/state.json", as_json(tree), state_of)


@scaled(50)
@given(bytes_like([ROW_LINES]))
def test_rows_as_text(data: bytes) -> None:
    read_once("rows.jsonl", data, read_rows, ValueError)


@scaled(50)
@given(trees_like([to_tree(row) for row in ROWS]))
def test_rows_as_trees(tree: object) -> None:
    read_once("rows.jsonl", as_json(tree) + b"\n" + ROW_LINES, read_rows, ValueError)


@scaled(40)
@given(bytes_like([CURVE]))
def test_curves(data: bytes) -> None:
    read_once("curve.jsonl", data, read_curve, ValueError)


def plan_of(path: Path) -> None:
    read_runs(path.parent)
    read_plan(path.parent)


@scaled(40)
@given(bytes_like([as_json(tree) for tree in PLANS]))
def test_plans_as_text(data: bytes) -> None:
    read_once("plan.json", data, plan_of)


@scaled(40)
@given(trees_like(PLANS))
def test_plans_as_trees(tree: object) -> None:
    read_once("plan.json", as_json(tree), plan_of)


TRIALS = [json.loads((ROOT / "results" / "published" / "tune_lr" / "trials.json").read_text(encoding="utf-8"))[:3]]


@scaled(20)
@given(trees_like(TRIALS))
def test_trials(tree: object) -> None:
    read_once("trials.json", as_json(tree), lambda path: read_trials(path.parent))


def test_what_is_not_changed_is_read() -> None:
    """Otherwise all of the above could hold of readers that read nothing."""
    for data in (SMALL, *SWEEPS):
        assert read_once("sweep.yaml", data, planned)
    for tree in CONFIGS:
        assert read_once("config.yaml", yaml.safe_dump(tree).encode(), composed)
    for tree in STATES:
        assert read_once("runs/0/state.json", as_json(tree), state_of)
    assert read_once("rows.jsonl", ROW_LINES, read_rows)
    assert read_once("curve.jsonl", CURVE, read_curve)
    assert read_once("trials.json", as_json(TRIALS[0]), lambda path: read_trials(path.parent))
    for tree in PLANS:
        assert read_once("plan.json", as_json(tree), plan_of)
