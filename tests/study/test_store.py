"""The store as frames: the index is never the truth, and rows of different protocols never mix."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import study.store
from study.command_line import STOPPED
from study.results import Row, append_rows, read_rows, write_rows
from study.results_command import main as results_main
from study.run_directory import RunDirectory, State, Status
from study.status import main as status_main
from study.status import view
from study.store import load, runs, wide
from study.sweep import main
from study.unscored import write_unscored
from study.upkeep import migrate, verify
from tests.study import fake_runs
from tests.study.sweeping import SWEEP, sweep_file

SCORED = "train.images: 64, sample.count: 100, score.metrics: [fd]"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    assert main([str(sweep_file(tmp_path)), f"results={tmp_path / 'r'}", "launcher=inline"], fake_runs.quick) == 0
    return tmp_path / "r"


def any_run(results: Path) -> RunDirectory:
    return RunDirectory(results, sorted(path.name for path in (results / "runs").iterdir())[0])


def test_one_line_per_run_and_metric_with_the_keys_that_differ(results: Path) -> None:
    frame = load(results / "lrs")
    assert len(frame) == 12 * len(fake_runs.METRICS)
    assert set(frame["seed"]) == set(range(6))
    assert set(frame["train.lr"]) == {0.001, 0.002}
    assert "train.batch" not in frame
    loss = frame[frame["metric"] == "val_loss"]
    assert (loss["value"] == loss["train.lr"].astype(float) * 1000 + loss["seed"].astype(float) / 1000).all()
    table = wide(frame)
    assert len(table) == 12
    assert (table["fd"] == table["val_loss"] * 7).all()


def test_the_index_follows_the_files(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load(results)
    run = any_run(results)
    extra = Row(run=run.identity, metric="extra", value=3.0, units="", n=1, protocol="x")
    append_rows(run.rows, [extra])
    read: list[Path] = []
    monkeypatch.setattr(study.store, "read_rows", lambda path: read.append(path) or read_rows(path))
    after = load(results)
    assert read == [run.rows]  # and none of the others
    assert len(after) == len(before) + 1
    load(results)
    assert read == [run.rows]
    run.write_state(run.read_state(), status=Status.FAILED)
    assert set(runs(results)["status"]) == {"done", "failed"}


@pytest.mark.parametrize("damage", ["truncate", "other", "absent"])
def test_a_damaged_index_is_rebuilt(results: Path, damage: str) -> None:
    before = load(results)
    (file,) = (results / ".index").glob("rows*")
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "other":
        pd.read_parquet(file).iloc[:-1].to_parquet(file)
    else:
        file.unlink()
    pd.testing.assert_frame_equal(load(results), before)


def test_a_metric_under_two_protocols_has_two_columns(results: Path) -> None:
    run = any_run(results)
    append_rows(run.rows, [Row(run=run.identity, metric="fd", value=1.0, units="", n=1, protocol="other")])
    columns = wide(load(results)).columns
    assert {"fd @ fd", "fd @ other"} <= set(columns)
    assert "fd" not in columns


def test_verify_finds_what_is_wrong(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(results) == []
    first, second, third = (RunDirectory(results, path.name) for path in sorted((results / "runs").iterdir())[:3])
    first.rows.write_text('{"run": "x"}\n', encoding="utf-8")
    write_rows(second.rows, [])
    third.config.write_text(
        third.config.read_text(encoding="utf-8").replace("images: 64", "images: 65"), encoding="utf-8"
    )
    told = {fault.run: fault.what for fault in verify(results)}
    assert "rows.jsonl:1: not a result row" in told[first.identity]
    assert told[second.identity] == "is done and has no rows"
    assert "its config now means run" in told[third.identity]
    assert len(told) == 3
    assert results_main(["--results", str(results), "verify"]) == 1


@pytest.mark.parametrize(
    ("file", "damage", "told"),
    [
        ("provenance.json", lambda text: text[:10], "provenance.json is damaged: "),
        ("provenance.json", lambda text: "[]", "provenance.json is damaged: it must be a list"),
        ("curve.jsonl", lambda text: text[:10], "curve.jsonl:1: "),
        ("curve.jsonl", lambda text: "", "its curve ends at 0 of 64 images"),
        ("curve.jsonl", None, "curve.jsonl cannot be read: No such file or directory"),
        (
            "rows.jsonl",
            lambda text: text[: text.index("\n") + 1],
            "is done and has no row of gmacs, params, train_seconds",
        ),
    ],
)
def test_verify_finds_what_a_finished_run_lost(
    results: Path, file: str, damage: Callable[[str], str] | None, told: str
) -> None:
    path = any_run(results).path / file
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    (fault,) = verify(results)
    assert fault.run == path.parent.name
    assert told in fault.what


def test_verify_finds_scores_without_a_row_or_a_reason(tmp_path: Path) -> None:
    """Fake runs draw no samples, so that there is nothing to score."""
    text = SWEEP.replace("sample: none", "sample: grid").replace("train.images: 64", SCORED)
    file = sweep_file(tmp_path, text.replace("[0.001, 0.002]", "[0.001]").replace("[0, 1, 2, 3, 4, 5]", "[0]"))
    assert main([str(file), f"results={tmp_path / 'r'}", "launcher=inline"], fake_runs.quick) == STOPPED
    (fault,) = verify(tmp_path / "r")
    assert "has neither a row of fd_digits8@100 nor a reason" in fault.what
    write_unscored(any_run(tmp_path / "r").unscored, {"fd_digits8@100": "no weights"})
    assert verify(tmp_path / "r") == []


def test_one_damaged_state_hides_no_other_run(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = any_run(results)
    run.state.write_text(run.state.read_text(encoding="utf-8")[:37], encoding="utf-8")
    assert status_main(["lrs", "--results", str(results)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "12 runs: 11 done, 1 damaged" in told[0]
    (line,) = (line for line in told if run.identity in line)
    assert f"damaged         {run.state} is not a run state: " in line
    assert status_main(["--results", str(results)]) == 0
    assert "12 runs: 11 done, 1 damaged" in capsys.readouterr().out
    assert status_main(["lrs", "--json", "--results", str(results)]) == 0
    assert json.loads(capsys.readouterr().out)["standings"] == {"damaged": 1, "done": 11}


@pytest.mark.parametrize(
    ("ahead", "told"), [(86400, "86400 s from now: its clock or this one is wrong"), (1, "last wrote 0 s ago")]
)
def test_a_clock_that_is_ahead_is_told(
    ahead: float, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path, "a" * 16)
    run.path.mkdir(parents=True)
    written = run.write_state(State(), status=Status.RUNNING).heartbeat
    monkeypatch.setattr(time, "time", lambda: written - ahead)
    assert told in view(tmp_path, run.identity).detail


def test_migrate_carries_runs_over_a_renamed_and_a_new_key(results: Path) -> None:
    """A store written before `train.clip` existed, when `train.lr` was called `train.rate`."""
    ids = {path.name for path in (results / "runs").iterdir()}
    for name in ids:
        config = RunDirectory(results, name).config
        lines = [
            line.replace("  lr:", "  rate:") for line in config.read_text(encoding="utf-8").splitlines(keepends=True)
        ]
        config.write_text("".join(line for line in lines if not line.startswith("  clip:")), encoding="utf-8")
        config.parent.rename(config.parent.with_name(f"old{name}"))
    assert len(verify(results)) == 12
    moved = migrate(results, added={"train.clip": 1.0}, renamed={"train.rate": "train.lr"})
    assert {old.removeprefix("old"): new for old, new in moved} == {name: name for name in ids}
    assert verify(results) == []
    assert migrate(results, added={"train.clip": 1.0}, renamed={"train.rate": "train.lr"}) == []


def test_migrate_leaves_a_run_where_it_is_if_its_id_does_not_hear_of_the_key(results: Path) -> None:
    before = {path: path.read_bytes() for path in (results / "runs").glob("*/*") if path.is_file()}
    for config in (results / "runs").glob("*/config.yaml"):
        lines = config.read_text(encoding="utf-8").splitlines(keepends=True)
        config.write_text("".join(line for line in lines if "write_behind:" not in line), encoding="utf-8")
    assert len(verify(results)) == 12
    assert migrate(results, added={"machine.write_behind": True}, renamed={}) == []  # none got a new id
    assert verify(results) == []
    after = {path: path.read_bytes() for path in (results / "runs").glob("*/*") if path.is_file()}
    assert {path: text for path, text in after.items() if path.name != "migrated.json"} == before


def test_status_and_export_from_files_alone(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = any_run(results)
    run.write_state(run.read_state(), status=Status.RUNNING)
    assert status_main(["lrs", "--results", str(results)]) == 0
    out = capsys.readouterr().out
    assert "12 runs: 11 done, 1 heartbeat gone" in out
    assert status_main([run.identity[:8], "--results", str(results)]) == 0
    assert "heartbeat gone" in capsys.readouterr().out
    assert status_main(["lrss", "--results", str(results)]) == 2
    assert "did you mean lrs?" in capsys.readouterr().err
    file = tmp_path / "rows.csv"
    assert results_main(["--results", str(results), "export", "lrs", str(file)]) == 0
    assert len(pd.read_csv(file)) == 12 * len(fake_runs.METRICS)


def test_status_says_why_scores_are_empty(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = any_run(results)
    write_unscored(run.unscored, {"fid@100": "no Inception weights", "sfid@100": "no Inception weights"})
    assert status_main(["lrs", "--results", str(results)]) == 0
    assert status_main([run.identity, "--results", str(results)]) == 0
    told = capsys.readouterr().out
    assert "fid@100, sfid@100: n/a in 1 of 12 runs: no Inception weights" in told
    assert "fid@100, sfid@100: n/a: no Inception weights" in told
