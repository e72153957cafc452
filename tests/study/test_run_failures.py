"""How a run fails: bad input in one line with nothing left behind, all else as a state with its class."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import study.attempt
import study.checkpoint
import study.run
import study.run_directory
import study.sample
import study.trackers
import study.train
from study.compose import resolve
from study.distributed import Ranks
from study.run import main
from study.run_directory import Failure, RunDirectory, Status
from study.strict import ConfigError
from study.train import Trainer
from tests.study.short_run import fail_at


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
    def full(path: Path, value: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(study.run_directory, "write_json", full)
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "storage: [Errno 28] No space left on device" in said
    assert "the state could not be recorded" in said


@pytest.mark.parametrize(
    ("name", "reason"), [("cuda:1", "each of several ranks takes its own GPU"), ("quantum", "Expected one of")]
)
def test_devices_that_several_ranks_cannot_have(name: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        study.run.pick_device(name, Ranks(0, 2))
    assert str(refusal.value).startswith(f"machine.device={name!r} is not usable here ({reason}")
    assert study.run.pick_device("cpu", Ranks(1, 2)) == torch.device("cpu")


@pytest.mark.parametrize(("name", "chosen"), [("cuda:1", [1]), ("cuda", [])])
def test_the_gpu_that_is_named_becomes_the_current_one(
    name: str, chosen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels are launched, and seeds and memory counted, on the current one."""
    current: list[int | None] = []
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(device.index))
    assert study.run.pick_device(name) == torch.device(name)
    assert current == chosen
