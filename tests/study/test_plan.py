"""From sweep files to runs: what a file means, and that a run's id is its meaning, no more and no less."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.denoiser import backbones
from study.compose import compose_tree
from study.config import from_dict, run_id
from study.equal_compute import partner_values
from study.execute import Wishes
from study.marked_yaml import dump_yaml, parse_marked
from study.plan import make_plan, standing
from study.results import Row, write_rows
from study.run_directory import State, Status
from study.search.command import check
from study.strict import ConfigError
from study.sweep_file import Axes, Sweep, parse_sweep, read_sweep, to_yaml
from study.throughput import recorded_speed

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))
BASE = compose_tree(["backbone=diffussm-tiny", "sample=none"])
TEXT = """\
# Why?
defaults: [backbone: diffussm-tiny, data: digits8, train: quick]
axes:
  backbone.M: [1, 2, 4]
  seed: [0, 1]
"""

CHOICES: dict[str, list[Any]] = {
    "backbone.M": [1, 2, 4],
    "backbone.width": [32, 64],
    "backbone.direction": ["both", "forward"],
    "train.images": [640, 641],
    "train.lr": [1e-3, 2e-3, 0.1],
    "train.precision": ["fp32", "bf16"],
    "train.flip": [True, False],
    "train.betas": [(0.9, 0.999), (0.9, 0.99)],
    "process.schedule": ["cosine", "linear"],
    "data.count": [100, 200],
    "sample.count": [0, 1],
    "seed": [0, 1, 2],
}
"""Every value of every key has another meaning."""


def point(chosen: dict[str, Any]) -> dict[str, Any]:
    tree = copy.deepcopy(BASE)
    for key, value in chosen.items():
        *parents, leaf = key.split(".")
        here = tree
        for parent in parents:
            here = here[parent]
        here[leaf] = value
    return tree


def respelled(value: Any, chance: random.Random) -> Any:
    """The same meaning in other words: keys in another order, 1 as 1.0, lists as tuples."""
    if isinstance(value, dict):
        items = [(key, respelled(item, chance)) for key, item in value.items()]
        chance.shuffle(items)
        return dict(items)
    if isinstance(value, list | tuple):
        return (tuple if chance.random() < 0.5 else list)(respelled(item, chance) for item in value)
    if isinstance(value, int) and not isinstance(value, bool) and chance.random() < 0.5:
        return float(value)
    return value


points = st.fixed_dictionaries({key: st.sampled_from(values) for key, values in CHOICES.items()})


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(points, points, st.integers(0, 1000))
def test_ids_are_shared_by_equal_meanings_and_no_others(one: dict[str, Any], other: dict[str, Any], seed: int) -> None:
    first, second = run_id(from_dict(point(one))), run_id(from_dict(point(other)))
    assert (first == second) == (one == other)
    assert run_id(from_dict(respelled(point(one), random.Random(seed)))) == first


@pytest.mark.parametrize("key", CHOICES)
def test_one_changed_key_changes_the_id(key: str) -> None:
    ids = [run_id(from_dict(point({key: value}))) for value in CHOICES[key]]
    assert len(set(ids)) == len(ids)


def test_what_changes_no_number_changes_no_id() -> None:
    first = run_id(from_dict(BASE))
    changes = {"machine.threads": 3, "machine.compile": True, "log.every": 64, "results": "elsewhere"}
    assert all(run_id(from_dict(point({key: value}))) == first for key, value in changes.items())


def test_a_raised_version_changes_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_id(from_dict(BASE))
    denoiser = backbones()["diffussm"].denoiser
    monkeypatch.setattr(denoiser, "version", denoiser.version + 1)
    assert run_id(from_dict(BASE)) != first


def test_the_collision_found_in_a_peer() -> None:
    """A harness wrote the bool of the string "False" into its result path, and left out width, precision and
    rate: runs that differed in those read each other's results. Here they differ, and the string is refused.
    """
    ids = set()
    for flag in (True, False):
        for other in ({}, {"backbone.width": 32}, {"train.precision": "bf16"}, {"train.lr": 3e-3}):
            ids.add(run_id(from_dict(point({"train.flip": flag, **other}))))
    assert len(ids) == 8
    with pytest.raises(ValueError, match=r"train\.flip='False' is not valid: must be true or false"):
        from_dict(point({"train.flip": "False"}))


scalars = st.one_of(
    st.integers(-(10**6), 10**6),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=8),
    st.sampled_from(["no", "1e-3", "null", "1_000", "007", "~", "0x10", "2020-01-01", "1:30", "", "yes"]),
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text("abc.", min_size=1, max_size=5), st.lists(scalars, max_size=4), min_size=1))
def test_yaml_round_trips(tree: dict[str, Any]) -> None:
    again = parse_marked(dump_yaml(tree), "text").tree
    assert json.dumps(again) == json.dumps(tree)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_plan_round_trips_through_its_frozen_file(data: st.DataObject) -> None:
    keys = data.draw(st.lists(st.sampled_from(sorted(CHOICES)), min_size=1, max_size=3, unique=True))
    axes = tuple(Axes({key: tuple(CHOICES[key][:2])}) for key in keys)
    if len(keys) == 3:
        axes = (axes[0], Axes({**axes[1].values, **axes[2].values}))
    exclude = ({keys[0]: (CHOICES[keys[0]][1],)},) if data.draw(st.booleans()) else ()
    baseline = {keys[0]: CHOICES[keys[0]][0]}
    defaults = {"backbone": "diffussm-tiny", "sample": "none"}
    sweep = Sweep("s", axes, "Why?\nSo.", defaults, {"log.every": 64}, exclude=exclude, baseline=baseline)
    again = parse_sweep(to_yaml(sweep), "s")
    assert again == sweep
    assert [p.run for p in make_plan(again).points] == [p.run for p in make_plan(sweep).points]


def test_points_are_the_product_of_the_axes_less_what_is_excluded(tmp_path: Path) -> None:
    text = TEXT + "zip: [{train.lr: [1e-3, 2e-3], train.batch: [32, 64]}]\nexclude: [{backbone.M: 4, seed: 1}]\n"
    plan = make_plan(parse_sweep(text, "s"))
    assert len(plan.points) == (3 * 2 - 1) * 2
    assert {(p.values["train.lr"], p.values["train.batch"]) for p in plan.points} == {(1e-3, 32), (2e-3, 64)}
    assert plan.label(plan.points[0]) == "M=1 seed=0 lr=0.001 batch=32"
    assert all(p.values["backbone.M"] == p.config.backbone.M for p in plan.points)  # type: ignore[attr-defined]
    kept = make_plan(parse_sweep(text + "where: [{backbone.M: [1, 2]}, {seed: 0}]\n", "s"))
    assert len(kept.points) == 10


def test_words_of_the_command_line_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(TEXT, encoding="utf-8")
    words = [
        "axes.seed=[3]",
        "~axes.backbone.M",
        "axes.train.lr=[1e-3, 2e-3]",
        "train.images=50_000",
        "backbone=dit-tiny",
    ]
    plan = make_plan(read_sweep(file, [*words, "launcher.workers=3", "baseline.train.lr=1e-3"]))
    assert [p.values for p in plan.points] == [{"seed": 3, "train.lr": lr} for lr in (1e-3, 2e-3)]
    assert {p.config.train.images for p in plan.points} == {50_000}
    assert {type(p.config.backbone).__name__ for p in plan.points} == {"DiTConfig"}
    assert plan.sweep.launcher.workers == 3  # type: ignore[union-attr]


def test_a_point_of_two_sweeps_is_one_run() -> None:
    one = make_plan(parse_sweep(TEXT, "one"))
    other = make_plan(parse_sweep(TEXT.replace("backbone.M: [1, 2, 4]", "backbone.M: [2, 8]"), "other"))
    shared = {p.run for p in one.points} & {p.run for p in other.points}
    assert shared == {p.run for p in one.points if p.values["backbone.M"] == 2}


def test_match_gives_every_point_the_same_compute() -> None:
    text = TEXT + "baseline: {backbone.M: 1}\nmatch: {like: baseline, free: [depth, width], tolerance: 3%}\n"
    plan = make_plan(parse_sweep(text, "s"))
    budget = plan.points[0].config.backbone.macs().total
    assert all(abs(p.config.backbone.macs().total / budget - 1) <= 0.03 for p in plan.points)
    assert plan.points[-1].sizes.keys() == {"backbone.depth", "backbone.width"}
    assert plan.points[-1].sizes != plan.points[0].sizes


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_every_sweep_of_the_project_is_valid_and_asks_a_question(file: Path) -> None:
    sweep = read_sweep(file, ["results=/nonexistent"])
    if sweep.search:
        assert sweep.question.count("?") >= 1
        assert check(sweep, Wishes())
        return
    plan = make_plan(sweep)
    assert plan.sweep.question.count("?") >= 1
    assert plan.sweep.baseline or file.stem.startswith("learns") or sweep.throughput  # recipes compare with papers
    assert all(standing(point)[0] == "new" for point in plan.points)


def test_a_baseline_must_name_one_entry_of_axes_that_move_together() -> None:
    text = TEXT + "zip: [{train.lr: [1e-3, 1e-3, 2e-3], train.batch: [32, 64, 64]}]\n"
    with pytest.raises(ConfigError, match=r"lr=0.001 matches 2 entries of zip; name train.batch as well"):
        make_plan(parse_sweep(text + "baseline: {train.lr: 1e-3}\n", "s"))
    plan = make_plan(parse_sweep(text + "baseline: {train.lr: 1e-3, train.batch: 64}\n", "s"))
    partners = [partner_values(plan.sweep, point.values) for point in plan.points]
    assert {(values["train.lr"], values["train.batch"]) for values in partners} == {(1e-3, 64)}


def test_a_baseline_of_values_that_never_occur_together_is_refused() -> None:
    text = TEXT + "zip: [{train.lr: [1e-3, 2e-3], train.batch: [32, 64]}]\n"
    text += "baseline: {train.lr: 1e-3, train.batch: 64}\nmatch: {like: baseline, free: [depth], tolerance: 50%}\n"
    with pytest.raises(ConfigError, match=r"baseline: matches no entry of train.lr with train.batch"):
        make_plan(parse_sweep(text, "s"))


def test_a_run_done_without_the_scores_asked_for_is_to_be_scored(tmp_path: Path) -> None:
    text = "defaults: [backbone: dit-tiny, score: {score}]\naxes: {{seed: [0]}}\n"
    words = [f"overrides.results={tmp_path}"]
    plain, scored, impossible = (
        make_plan(read_sweep(_written(tmp_path, text.format(score=score)), words)).points[0]
        for score in ("none", "quick", "fid")
    )
    assert plain.run == scored.run == impossible.run
    plain.directory.path.mkdir(parents=True)
    plain.directory.write_state(State(), status=Status.DONE)
    row = Row(run=plain.run, metric="val_loss", value=1.0, units="", n=1, protocol="p")
    write_rows(plain.directory.rows, [row])
    assert [standing(point)[0] for point in (plain, scored, impossible)] == ["done", "to score", "to score"]


def test_damaged_rows_of_earlier_runs_do_not_stop_a_plan(tmp_path: Path) -> None:
    for number, text in enumerate(["{", "[]\n", '{"metric": 1}\n', '"x"\n', "\x00\xff"]):
        folder = tmp_path / "runs" / str(number)
        folder.mkdir(parents=True)
        (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    assert recorded_speed(tmp_path).records == ()


def _written(folder: Path, text: str) -> Path:
    file = folder / "s.yaml"
    file.write_text(text, encoding="utf-8")
    return file
