"""A run's own scores: asked for by preset, refused or explained before training, rows at the end."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from study.compose import resolve
from study.config import run_id
from study.quality import unscorable
from study.results import read_rows
from study.run import prepare, run
from study.run_directory import RunDirectory, Status
from study.strict import ConfigError

SMALL = ["backbone=dit-tiny", "backbone.width=16", "backbone.depth=1", "train.images=128", "sample.count=40"]
SMALL += ["train.validate_images=16", "sample.sampler.steps=2", "machine.threads=1"]


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
