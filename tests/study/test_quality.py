"""A run's own scores: asked for by preset, refused or explained before training, rows at the end."""

from __future__ import annotations

import json
import logging
import shutil
import textwrap
from pathlib import Path

import pytest

from study import score_again, unscored
from study.compose import resolve
from study.config import run_id
from study.quality import unscorable
from study.results import read_rows
from study.run import prepare, run, summary
from study.run_directory import RunDirectory, Status
from study.strict import ConfigError
from study.sweep import main as sweep
from study.train import Trainer

SMALL = ["backbone=dit-tiny", "backbone.width=16", "backbone.depth=1", "train.images=128", "sample.count=40"]
SMALL += ["train.validate_images=16", "sample.sampler.steps=2", "machine.threads=1"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def test_run_leaves_its_scores(tmp_path: Path) -> None:
    config = resolve([*SMALL, "score=quick", f"results={tmp_path}"])
    assert run(config).status is Status.DONE
    rows = {row.metric: row for row in read_rows(RunDirectory.of(config).rows)}
    assert {"fd_digits8@40", "kd_digits8@40", "agreement_digits8@40"} <= rows.keys()
    agreement = rows["agreement_digits8@40"]
    assert agreement.n == 40
    assert agreement.provenance["extractor"] == "digits8"
    assert agreement.interval is not None
    assert agreement.interval[0] <= agreement.value <= agreement.interval[1] <= 1
    assert not RunDirectory.of(config).unscored.exists()
    listed = [row.metric for row in read_rows(RunDirectory.of(config).rows)]
    assert listed.index("fd_digits8@40.real") < listed.index("fd_digits8@40")  # the floor comes first
    assert rows["fd_digits8@40.real"].protocol != rows["fd_digits8@40"].protocol
    assert rows["fd_digits8@40.real"].value < rows["fd_digits8@40"].value


def test_missing_inception_is_told_before_training_and_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    absent = tmp_path / "inception.pth"
    config = resolve([*SMALL, "score=fid", f"score.inception_weights={absent}", f"results={tmp_path / 'results'}"])
    reasons = unscorable(config)
    assert reasons.keys() == {"fid", "sfid", "is", "kid", "precision", "recall"}
    assert all(str(absent) in reason and "sha256" in reason for reason in reasons.values())
    with caplog.at_level(logging.WARNING, logger="study.run"):
        prepare(config)
    assert "fid will stay empty" in caplog.text
    assert run(config).status is Status.DONE
    directory = RunDirectory.of(config)
    assert not [row for row in read_rows(directory.rows) if "fid" in row.metric]
    assert "fid@40" in json.loads(directory.unscored.read_text())
    told = summary(directory)
    assert "fid@40, sfid@40, is@40, kid@40, precision@40, recall@40: n/a: Inception weights not found" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score.metrics=[fdd]"], "fdd"),
        (["score.metrics=[fd_nowhere]"], "nowhere"),
        (["score=quick", "sample.count=0"], "sample.count=0"),
        (["score=quick", "data=photos16"], "feature space"),
        (["score.metrics=[fd,fd]"], "score.metrics"),
        (["score=quik"], "quick"),
    ],
)
def test_impossible_scores_are_refused_before_anything_is_written(
    tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        prepare(resolve([*SMALL, *words, f"results={tmp_path}"]))
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_scores_do_not_enter_the_id() -> None:
    """Asking one more number of a finished run must not train it again."""
    assert run_id(resolve([*SMALL, "score=quick"])) == run_id(resolve([*SMALL, "score=none"]))


@pytest.mark.parametrize("kept", [False, True], ids=["drawn again", "kept samples"])
def test_done_run_is_scored_again_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    """The same rows as if they had been asked for at once; those there stay; nothing is computed twice."""
    words = [*SMALL, f"log.save_samples={str(kept).lower()}"]
    at_once = resolve([*words, "score.metrics=[kd,fd,swd]", f"results={tmp_path / 'at_once'}"])
    first = resolve([*words, "score.metrics=[kd]", f"results={tmp_path / 'later'}"])
    later = resolve([*words, "score.metrics=[fd,swd]", f"results={tmp_path / 'later'}"])
    directory = RunDirectory.of(later)
    run(at_once)
    run(first)
    before = {row.metric: row for row in read_rows(directory.rows)}

    def never(*given: object) -> None:
        raise AssertionError("a finished run was trained, or its samples drawn, again")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", never)
        if kept:
            patch.setattr(score_again, "draw_together", never)
        assert run(later).status is Status.DONE
    rows = {row.metric: row for row in read_rows(directory.rows)}
    expected = {row.metric: row.value for row in read_rows(RunDirectory.of(at_once).rows) if "@" in row.metric}
    assert {metric: row.value for metric, row in rows.items() if "@" in metric} == expected
    assert all(rows[metric] == row for metric, row in before.items())
    monkeypatch.setattr(score_again, "score_rows", never)
    run(later)
    run(first)
    assert {row.metric: row for row in read_rows(directory.rows)} == rows


def test_done_run_learns_why_a_score_is_empty_and_when_it_no_longer_is(tmp_path: Path) -> None:
    config = resolve([*SMALL, f"results={tmp_path / 'results'}"])
    directory = RunDirectory.of(config)
    run(config)
    absent = f"score.inception_weights={tmp_path / 'none.pth'}"
    run(resolve([*SMALL, "score.metrics=[fid,kd]", absent, f"results={tmp_path / 'results'}"]))
    assert unscored.read_unscored(directory.unscored).keys() == {"fid@40"}
    assert any(row.metric == "kd_digits8@40" for row in read_rows(directory.rows))
    shutil.rmtree(directory.checkpoints)
    run(resolve([*SMALL, "score.metrics=[fd]", f"results={tmp_path / 'results'}"]))
    reasons = unscored.read_unscored(directory.unscored)
    assert "neither samples nor the last checkpoint" in reasons["fd_digits8@40"]
    with pytest.raises(ConfigError, match="fdd"):
        run(resolve([*SMALL, "score.metrics=[fdd]", f"results={tmp_path / 'results'}"]))


def test_plan_tells_empty_columns_and_refuses_unknown_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is launched."""
    file = tmp_path / "few.yaml"
    text = """
        # Is it seen?
        defaults: [backbone: dit-tiny, data: digits8, train: quick]
        overrides: {score.metrics: METRICS, sample.count: 40}
        axes: {seed: [0, 1]}
        """
    file.write_text(textwrap.dedent(text).replace("METRICS", "[fd, fd_inf]"))
    assert sweep([str(file), "--plan", f"results={tmp_path / 'results'}"]) == 0
    assert "fd_inf_digits8@40: n/a in 2 of 2 runs: sample.count=40 is too few" in capsys.readouterr().out
    file.write_text(textwrap.dedent(text).replace("METRICS", "[fdd]"))
    assert sweep([str(file), f"results={tmp_path / 'results'}"]) == 2
    assert "fdd" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_reasons_are_told_once_each() -> None:
    runs = [{"fid@1k": "no weights", "is@1k": "no weights"}, {"fid@1k": "no weights", "fd_inf_digits8@1k": "few"}, {}]
    assert unscored.lines(runs[0]) == ["fid@1k, is@1k: n/a: no weights"]
    assert unscored.lines_of_many(runs) == [
        "fid@1k, is@1k: n/a in 2 of 3 runs: no weights",
        "fd_inf_digits8@1k: n/a in 1 of 3 runs: few",
    ]


def test_damaged_reasons_are_no_reasons(tmp_path: Path) -> None:
    file = tmp_path / "unscored.json"
    assert unscored.read_unscored(file) == {}
    for content in ("{", "[1]", ""):
        file.write_text(content)
        assert unscored.read_unscored(file) == {}
    unscored.write_unscored(file, {"fid@1k": "why"})
    assert unscored.read_unscored(file) == {"fid@1k": "why"}
    unscored.write_unscored(file, {})
    assert not file.exists()
