"""A run that is stopped, or whose files are damaged, ends with the very bytes of one that was left alone."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import study.attempt
import study.checkpoint
import study.provenance
import study.run
import study.run_directory
import study.sample
import study.trackers
import study.train
from study.compose import resolve
from study.data import DataConfig, ImageSet, Split
from study.lease import take
from study.results import read_rows
from study.run import main, run
from study.run_directory import Failure, RunDirectory, Status
from study.train import Trainer
from tests.study.short_run import IMAGES, equal_to, fail_at


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


def test_rows_name_every_commit_that_trained_the_run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(study.provenance, "git_state", lambda: {"commit": "aaaa", "dirty": "true"})
    assert main(words) == 128 + signal.SIGTERM
    monkeypatch.setattr(study.provenance, "git_state", lambda: {"commit": "bbbb", "dirty": "false"})
    assert main(words) == 0
    (row, *others) = read_rows(RunDirectory.of(resolve(words)).rows)
    assert (row.provenance["commit"], row.provenance["dirty"]) == ("aaaa, bbbb", "true, false")
    assert row.provenance["torch"] == torch.__version__.partition("+")[0]
    assert {other.provenance["commit"] for other in others} == {"aaaa, bbbb"}


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


def test_training_goes_on_while_a_checkpoint_is_written(
    undisturbed: RunDirectory, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first write ends only after a step that comes after it; what it wrote is of its own moment all the same."""
    original, trained_on = study.checkpoint.save_file, threading.Event()
    fail_at(monkeypatch, 4, trained_on.set)

    def patient(tensors: dict[str, torch.Tensor], path: Path) -> None:
        assert trained_on.wait(30)
        original(tensors, path)
        if "000000000008" in path.name:
            monkeypatch.setattr(study.checkpoint, "save_file", original)
            kept.update({name: tensor.clone() for name, tensor in tensors.items()})

    kept: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(study.checkpoint, "save_file", patient)
    equal_to(undisturbed, words)
    trainer = Trainer(resolve(words), torch.device("cpu"))
    trainer.step(), trainer.step()
    assert all(torch.equal(kept[name], tensor) for name, tensor in trainer.tensors().items() if "loss" not in name)


def test_a_stop_waits_for_the_checkpoint_to_be_written(
    undisturbed: RunDirectory, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = study.checkpoint.save_file

    def slow(tensors: dict[str, torch.Tensor], path: Path) -> None:
        time.sleep(0.3)
        original(tensors, path)

    monkeypatch.setattr(study.checkpoint, "save_file", slow)
    fail_at(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main(words) == 128 + signal.SIGTERM
    directory = RunDirectory.of(resolve(words))
    assert max(path.stem for path in directory.checkpoints.glob("*.json")) == f"{20:012d}"
    assert not list(directory.checkpoints.glob(".*"))
    monkeypatch.setattr(study.checkpoint, "save_file", original)
    equal_to(undisturbed, words)


def test_checkpoints_written_at_once_are_the_same(undisturbed: RunDirectory, words: list[str]) -> None:
    equal_to(undisturbed, [*words, "machine.write_behind=false"])


def signal_at_call(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> list[int]:
    """SIGTERM to this process in the n-th call of that function; the calls are counted in what comes back."""
    calls, original = [0], getattr(owner, name)

    def counting(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, counting)
    return calls


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_validation_that_was_cut_short_is_done_when_the_run_goes_on(
    undisturbed: RunDirectory, words: list[str], monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Two batches each in the middle of training: signals in the first, between, and in the next validation's first."""
    calls = signal_at_call(monkeypatch, Trainer, "_losses", call)
    assert main(words) == 128 + signal.SIGTERM
    assert calls[0] <= call + 1
    directory = RunDirectory.of(resolve(words))
    assert directory.read_state().images == (16 if call < 3 else 32)
    equal_to(undisturbed, words)


def test_stopped_again_in_the_validation_that_was_due(
    undisturbed: RunDirectory, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        with monkeypatch.context() as patch:
            calls = signal_at_call(patch, Trainer, "_losses", 1)
            assert main(words) == 128 + signal.SIGTERM
            assert calls[0] == 1
    directory = RunDirectory.of(resolve(words))
    assert (directory.read_state().images, directory.read_state().attempts) == (16, 2)
    equal_to(undisturbed, words)


def test_a_stop_in_the_last_validation_is_heeded_at_once(
    undisturbed: RunDirectory, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = signal_at_call(monkeypatch, Trainer, "_losses", 5)  # after two validations of two batches
    assert main(words) == 128 + signal.SIGTERM
    assert calls[0] == 5
    assert RunDirectory.of(resolve(words)).read_state().images == IMAGES
    equal_to(undisturbed, words)


def test_a_stop_while_scoring_is_heeded_at_once(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(600):
            time.sleep(0.1)
        pytest.fail("nobody listened")

    scored = [*words, "score.metrics=[fd]"]
    with monkeypatch.context() as patch:
        patch.setattr(study.attempt.quality(), "score_rows", endless)
        assert main(scored) == 128 + signal.SIGTERM
    state = RunDirectory.of(resolve(scored)).read_state()
    assert (state.status, state.failure) == (Status.PENDING, Failure.PREEMPTED)
    monkeypatch.setattr(study.attempt.quality(), "score_rows", lambda *args: ([], {}))
    assert main(scored) == 0


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_other_images_than_before_are_refused(
    split: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = study.train.load
    fail_at(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main(words) == 128 + signal.SIGTERM
    directory = RunDirectory.of(resolve(words))
    before = directory.read_state()

    def load(config: DataConfig, which: Split) -> ImageSet:
        images = original(config, which)
        if which != split:
            return images
        changed = images.images.clone()
        changed[7, 0, 3, 3] ^= 1
        return replace(images, images=changed, sha256="")

    monkeypatch.setattr(study.train, "load", load)
    assert main(words) == 2
    assert f"error: the {split} images of digits8 changed since {directory.path}" in capsys.readouterr().err
    assert directory.read_state() == before


def test_leftovers_of_a_writer_that_was_killed_go(undisturbed: RunDirectory, words: list[str]) -> None:
    """Also one that died while it wrote the samples."""
    directory = RunDirectory.of(resolve(words))
    directory.samples.mkdir(parents=True)
    for leftover in (directory.path / ".state.json.1.tmp", directory.samples / ".adm.npz.1.tmp"):
        leftover.write_bytes(b"half")
    equal_to(undisturbed, words)
    assert not list(directory.path.rglob("*.tmp"))
