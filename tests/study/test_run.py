"""A run as its user meets it: what it leaves, and what of it can be chosen."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import study.attempt
import study.checkpoint
import study.run
import study.run_directory
import study.sample
import study.trackers
import study.train
from study.compose import resolve
from study.results import read_rows
from study.rows import validation_protocol
from study.run import run
from study.run_directory import RunDirectory, Status, load_config, read_curve
from study.sample import labels_of
from tests.study.short_run import IMAGES, SMALL, finished


def test_what_a_run_leaves(undisturbed: RunDirectory) -> None:
    names = {path.name for path in undisturbed.path.iterdir()}
    files = {"config.yaml", "state.json", "curve.jsonl", "rows.jsonl", "samples.png", "log.txt", "provenance.json"}
    assert names == files | {"speed.jsonl", "checkpoint", "samples"}
    assert load_config(undisturbed.config) == resolve([*SMALL, f"results={undisturbed.path.parents[1]}"])
    state = undisturbed.read_state()
    assert (state.status, state.attempts, state.images, state.failure) == (Status.DONE, 1, IMAGES, None)
    assert Image.open(undisturbed.grid).size[0] > 0
    assert np.load(undisturbed.samples / "adm.npz")["arr_0"].shape == (4, 8, 8, 3)
    provenance = json.loads(undisturbed.provenance.read_text())
    assert len(provenance) == 1
    assert {"commit", "dirty", "torch", "cpu", "threads", "precision", "allocator", "train_data"} <= provenance[
        0
    ].keys()
    assert re.search(
        r"step 12/12  images 48/48  loss \d\.\d+  \d+ images/s  0:00 left  \d+ MiB", undisturbed.log.read_text()
    )


def test_the_curve(undisturbed: RunDirectory) -> None:
    curve = read_curve(undisturbed.curve)
    assert [point["images"] for point in curve if "loss" in point] == list(range(4, IMAGES + 1, 4))
    assert [point["images"] for point in curve if "val_loss" in point] == [16, 32, 48]


def test_the_rows(undisturbed: RunDirectory) -> None:
    rows = {(row.metric, row.protocol): row for row in read_rows(undisturbed.rows)}
    metrics = [metric for metric, _ in rows]
    assert metrics.count("val_loss") == 2  # one per EMA decay, under protocols of their own
    assert {"val_loss_bin0", "val_loss_bin1", "params", "gmacs", "train_pflops", "images_per_second"} <= set(metrics)
    by_metric = {row.metric: row for row in reversed(rows.values())}
    config = load_config(undisturbed.config)
    macs = config.backbone.macs().total
    assert by_metric["gmacs"].value == macs / 1e9
    assert by_metric["train_pflops"].value == pytest.approx(3 * 2 * macs * IMAGES / 1e15)
    assert by_metric["val_loss"].value == read_curve(undisturbed.curve)[-1]["val_loss"]
    low, high = by_metric["val_loss"].interval or (0, 0)
    assert low < by_metric["val_loss"].value < high
    assert all(row.run == undisturbed.identity and row.provenance["precision"] == "fp32" for row in rows.values())


def test_a_finished_run_is_not_run_again(undisturbed: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study.run, "prepare", lambda config: pytest.fail("started again"))
    assert run(resolve([*SMALL, f"results={undisturbed.path.parents[1]}"])).status is Status.DONE


def test_kept_checkpoints(words: list[str]) -> None:
    """At multiples of their own interval, rounded up to a whole batch."""
    directory = finished([*words, "log.keep_every=10", "log.checkpoint_every=16"])
    assert sorted(int(path.stem) for path in directory.checkpoints.glob("*.json")) == [12, 20, 32, 40, 48]


def test_random_labels(words: list[str]) -> None:
    labels = np.load(finished([*words, "sample.labels=random"]).samples / "adm.npz")["arr_1"]
    expected = labels_of(range(4), 10, "random", seed=0)
    assert expected is not None
    assert labels.tolist() == expected.tolist() != [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("word", "comparable"),
    [
        ("train.lr=1e-4", True),
        ("data.count=500", True),
        ("data.heldout=200", True),  # the first ones all the same
        ("train.validate_images=5", False),
        ("train.validate_bins=3", False),
        ("data.seed=1", False),
        ("process.predict=v", False),
    ],
)
def test_validation_protocols(words: list[str], word: str, comparable: bool) -> None:
    plain, changed = (validation_protocol(resolve(given), 0.99) for given in (words, [*words, word]))
    assert (plain == changed) is comparable


def test_asking_for_more_held_out_images_than_there_are_asks_for_all(words: list[str]) -> None:
    asked = [resolve([*words, f"train.validate_images={count}"]) for count in (297, 298, 10_000)]
    assert len({validation_protocol(config, 0.99) for config in asked}) == 1


def test_a_tracker_sees_the_curve_and_the_speed(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    monkeypatch.setattr(
        study.attempt, "open_trackers", lambda *args: [lambda images, values: seen.append((images, dict(values)))]
    )
    directory = finished(words)
    points = [{"images": images, **values} for images, values in seen]
    assert [point for point in points if "images_per_second" not in point] == read_curve(directory.curve)
    assert [{**point, "ranks": 1} for point in points if "images_per_second" in point] == read_curve(directory.speed)


def test_the_command_line(undisturbed: RunDirectory, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "study.run", *SMALL, f"results={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "step 12/12" in done.stderr
    assert "val_loss" in done.stdout
    assert (tmp_path / "runs" / undisturbed.identity / "curve.jsonl").read_bytes() == undisturbed.curve.read_bytes()
