"""A run as its user meets it: what it leaves, how it ends, how it goes on, what it refuses."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import study.attempt
import study.checkpoint
import study.run
import study.run_directory
import study.sample
import study.trackers
import study.train
from study.checkpoint import crossed
from study.compose import resolve
from study.lease import take
from study.results import Row, append_rows, read_rows, write_rows
from study.rows import validation_protocol
from study.run import main, run
from study.run_directory import Failure, RunDirectory, Status, load_config, read_curve
from study.sample import labels_of
from study.train import Trainer
from tests.study.short_run import IMAGES, RUN, what_must_not_differ

SMALL = ["backbone.depth=1", "backbone.width=16", "backbone.heads=2", *RUN]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return finished([*SMALL, f"results={tmp_path_factory.mktemp('undisturbed')}"])


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return [*SMALL, f"results={tmp_path / 'results'}"]


def finished(words: list[str]) -> RunDirectory:
    config = resolve(words)
    assert run(config).status is Status.DONE
    return RunDirectory.of(config)


def equal_to(undisturbed: RunDirectory, words: list[str]) -> None:
    found, expected = what_must_not_differ(finished(words)), what_must_not_differ(undisturbed)
    assert {name: found[name] == expected[name] for name in expected} == dict.fromkeys(expected, True)


def fail_at(monkeypatch: pytest.MonkeyPatch, step: int, action: object) -> None:
    """Do `action` after that training step, once."""
    original = Trainer.step

    def stepping(trainer: Trainer) -> None:
        original(trainer)
        if trainer.steps == step:
            monkeypatch.setattr(Trainer, "step", original)
            action()  # type: ignore[operator]

    monkeypatch.setattr(Trainer, "step", stepping)


def test_what_a_run_leaves(undisturbed: RunDirectory) -> None:
    names = {path.name for path in undisturbed.path.iterdir()}
    files = {"config.yaml", "state.json", "curve.jsonl", "rows.jsonl", "samples.png", "log.txt", "provenance.json"}
    assert names == files | {"checkpoint", "samples"}
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


@pytest.mark.parametrize(
    ("number", "failure"), [(signal.SIGTERM, "preempted"), (signal.SIGUSR2, "preempted"), (signal.SIGINT, "stopped")]
)
def test_a_signal_saves_and_the_run_goes_on(
    undisturbed: RunDirectory,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    failure: str,
) -> None:
    fail_at(monkeypatch, 5, lambda: os.kill(os.getpid(), number))
    assert main(words) == 128 + number
    state = RunDirectory.of(resolve(words)).read_state()
    assert (state.status, state.failure, state.images) == (Status.PENDING, failure, 20)
    equal_to(undisturbed, words)


def test_a_signal_while_sampling_is_heeded_at_once(
    undisturbed: RunDirectory, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also within a batch of samples, of which there may be hours."""
    calls, original = 0, study.sample.guided

    def guided(*args: Any) -> Any:
        denoise = original(*args)

        def counting(x: torch.Tensor, t: float) -> torch.Tensor:
            nonlocal calls
            calls += 1
            os.kill(os.getpid(), signal.SIGTERM)
            return denoise(x, t)

        return counting

    monkeypatch.setattr(study.sample, "guided", guided)
    assert main(words) == 128 + signal.SIGTERM
    assert calls == 1
    assert RunDirectory.of(resolve(words)).read_state().failure is Failure.PREEMPTED
    monkeypatch.setattr(study.sample, "guided", original)
    equal_to(undisturbed, words)


def test_an_impatient_interrupt_is_no_failure(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    fail_at(monkeypatch, 5, twice)
    assert main(words) == 130
    state = RunDirectory.of(resolve(words)).read_state()
    assert (state.status, state.failure) == (Status.PENDING, Failure.STOPPED)


def test_a_run_is_done_by_one_process_at_a_time(
    undisturbed: RunDirectory, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = RunDirectory.of(resolve(words))
    lease = take(directory.path)
    assert lease is not None
    with lease:
        assert main(words) == 2
        assert f"is being done by process {os.getpid()} on" in capsys.readouterr().err
        assert {path.name for path in directory.path.iterdir()} == {"leases"}
    assert main(words) == 0
    equal_to(undisturbed, words)


def test_kept_checkpoints(words: list[str]) -> None:
    """At multiples of their own interval, rounded up to a whole batch."""
    directory = finished([*words, "log.keep_every=10", "log.checkpoint_every=16"])
    assert sorted(int(path.stem) for path in directory.checkpoints.glob("*.json")) == [12, 20, 32, 40, 48]


def test_random_labels(words: list[str]) -> None:
    labels = np.load(finished([*words, "sample.labels=random"]).samples / "adm.npz")["arr_1"]
    expected = labels_of(range(4), 10, "random", seed=0)
    assert expected is not None
    assert labels.tolist() == expected.tolist() != [0, 1, 2, 3]


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_checkpoint_costs_one_interval(
    undisturbed: RunDirectory, words: list[str], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    fail_at(monkeypatch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run(resolve(words))
    directory = RunDirectory.of(resolve(words))
    newest = max(directory.checkpoints.glob("*.safetensors"))
    if damage == "truncated":
        os.truncate(newest, 1000)
    else:
        content = bytearray(newest.read_bytes())
        content[-100] ^= 1
        newest.write_bytes(content)
    equal_to(undisturbed, words)
    said = directory.log.read_text()
    assert ("is truncated: 1000 bytes" if damage == "truncated" else "its checksum does not match") in said
    assert "continuing from the checkpoint at 24 of 48 images" in said


def test_a_full_disk_costs_one_interval(
    undisturbed: RunDirectory, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, calls = study.checkpoint.save_file, 0

    def full_at_the_third(tensors: dict[str, torch.Tensor], path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(tensors, path)

    monkeypatch.setattr(study.checkpoint, "save_file", full_at_the_third)
    assert main(words) == 1
    directory = RunDirectory.of(resolve(words))
    state = directory.read_state()
    assert (state.status, state.failure) == (Status.FAILED, Failure.STORAGE)
    assert "No space left on device" in (state.message or "")
    equal_to(undisturbed, words)
    assert "continuing from the checkpoint at 16 of 48 images" in directory.log.read_text()


def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.step

    def poisoned(trainer: Trainer) -> None:
        if trainer.steps == 6:
            with torch.no_grad():
                trainer.parameters[0].fill_(float("inf"))
        original(trainer)

    monkeypatch.setattr(Trainer, "step", poisoned)
    assert main(words) == 1
    directory = RunDirectory.of(resolve(words))
    state = directory.read_state()
    assert (state.status, state.failure) == (Status.FAILED, Failure.DIVERGED)
    assert state.message == "loss or gradient not finite in step 7, 28 images into training"
    assert max(path.stem for path in directory.checkpoints.glob("*.json")) == f"{24:012d}"
    assert not directory.rows.exists()


def test_a_bug_is_a_state_with_its_traceback_in_the_log(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("somebody's mistake")

    fail_at(monkeypatch, 3, broken)
    assert main(words) == 1
    directory = RunDirectory.of(resolve(words))
    assert directory.read_state().failure is Failure.BUG
    assert "ZeroDivisionError" in directory.log.read_text()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), Failure.OUT_OF_MEMORY),
        (MemoryError(), Failure.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), Failure.OUT_OF_MEMORY),
        (OSError(errno.EIO, "Input/output error"), Failure.STORAGE),
        (KeyboardInterrupt(), Failure.STOPPED),
        (KeyError("x"), Failure.BUG),
    ],
)
def test_failure_classes(error: BaseException, failure: Failure) -> None:
    assert study.run.classify(error) is failure


BAD_INPUT = {
    "train.images=0": "train.images=0 is not valid",
    "train.precision=fp8": "train.precision='fp8' is not valid",
    "machine.device=quantum": "machine.device='quantum' is not usable here",
    "backbone=nothing": "backbone=nothing is not a preset",
    "results=": "results='' is not valid: must be a folder",
    f"results={'a' * 300}": "File name too long",
    "results=/dev/null/below": "results='/dev/null/below' is not writable",
    "results=/proc/none": "results='/proc/none' is not writable",
}


@pytest.mark.parametrize("word", BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_nothing(
    word: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, word]) == 2
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    assert complaint.startswith("error: ")
    assert BAD_INPUT[word] in complaint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [ValueError("images=NaN or infinity is not valid: must be finite values"), FileNotFoundError("no such set")],
)
def test_bad_data_leave_nothing(
    error: Exception,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(config: object, split: str) -> None:
        raise error

    monkeypatch.setattr(study.train, "load", refuse)
    assert main(words) == 2
    assert f"error: {error}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_nan_in_the_data_is_refused(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sklearn.datasets

    digits = sklearn.datasets.load_digits()
    digits.images[:, 3, 3] = np.nan
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: digits)
    assert main([*words, "data.seed=99"]) == 2  # a seed whose images are not in the cache
    assert "NaN" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bad_held_out_data_are_refused_before_training(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = study.train.load

    def load(config: Any, split: Any) -> Any:
        if split == "heldout":
            raise ValueError("images='NaN or infinity' is not valid: must be finite values")
        return original(config, split)

    monkeypatch.setattr(study.train, "load", load)
    assert main(words) == 2
    assert "NaN" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_network_too_large_for_this_machine_is_one_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_large(config: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 TB")

    monkeypatch.setattr(study.train, "new_network", too_large)
    assert main(words) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: out of memory: DefaultCPUAllocator")
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused(
    name: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(study.trackers, "find_spec", lambda package: None)
    assert main([*words, f"log.{name}=true"]) == 2
    assert f"log.{name}=true needs the package {name}: pip install {name}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_sees_the_curve(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    monkeypatch.setattr(
        study.attempt, "open_trackers", lambda *args: [lambda images, values: seen.append((images, dict(values)))]
    )
    directory = finished(words)
    assert [{"images": images, **values} for images, values in seen] == read_curve(directory.curve)


def test_the_command_line(undisturbed: RunDirectory, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "study.run", *SMALL, f"results={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "step 12/12" in done.stderr
    assert "val_loss" in done.stdout
    assert (tmp_path / "runs" / undisturbed.identity / "curve.jsonl").read_bytes() == undisturbed.curve.read_bytes()


@pytest.mark.parametrize(
    ("before", "now", "every", "expected"),
    [(0, 4, 4, True), (4, 7, 4, False), (7, 9, 4, True), (0, 64, 10, True), (0, 64, 0, False)],
)
def test_crossed(before: int, now: int, every: int, expected: bool) -> None:
    assert crossed(before, now, every) is expected


ROW = Row(run="a", metric="m", value=1.0, units="s", n=2, interval=(0.5, 1.5), protocol="p", provenance={"k": "v"})


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def test_rows_round_trip_and_replace(rows_file: Path) -> None:
    write_rows(rows_file, [ROW])
    append_rows(rows_file, [replace(ROW, value=3.0), replace(ROW, protocol="q")])
    assert read_rows(rows_file) == [replace(ROW, value=3.0), replace(ROW, protocol="q")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"value": float("nan")}, "value=nan is not valid"),
        ({"value": "1"}, "value='1' is not valid"),
        ({"n": 0}, "n=0 is not valid"),
        ({"n": True}, "n=True is not valid"),
        ({"interval": [2.0, 1.0]}, "must be (low, high)"),
        ({"protocol": ""}, "must be not empty"),
        ({"provenance": {"a": 1}}, "must be a mapping of strings"),
        ({"extra": 1}, "unknown ['extra']"),
    ],
)
def test_rows_are_checked(rows_file: Path, change: dict[str, object], reason: str) -> None:
    write_rows(rows_file, [ROW])
    line = {**json.loads(rows_file.read_text()), **change}
    rows_file.write_text(rows_file.read_text() + json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=re.escape(reason)) as refusal:
        read_rows(rows_file)
    assert f"{rows_file}:2: " in str(refusal.value)


def test_a_disk_that_is_full_from_the_start(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(study.run_directory, "write_text", full)
    assert main(words) == 2
    assert "is not writable: No space left on device" in capsys.readouterr().err
    assert not list((tmp_path / "results" / "runs").iterdir())


def test_a_state_that_cannot_be_written_is_said(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(study.run_directory, "write_json", full)
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "storage: [Errno 28] No space left on device" in said
    assert "the state could not be recorded" in said
