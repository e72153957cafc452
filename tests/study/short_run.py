"""A run of a dozen steps that still does everything, and what two executions of it must share to the byte."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from study.checkpoint import CheckpointFolder
from study.compose import resolve
from study.results import read_rows
from study.rows import SPEED_PROTOCOL
from study.run import run
from study.run_directory import RunDirectory, Status
from study.train import Trainer

IMAGES = 48
RUN = [
    f"train.images={IMAGES}",
    "train.batch=4",
    "train.ema=[0.99,0.9]",
    "train.flip=true",
    "train.validate_every=16",
    "train.validate_images=4",
    "train.validate_bins=2",
    "sample.count=4",
    "sample.sampler.steps=3",
    "machine.threads=1",
    "log.every=4",
    "log.checkpoint_every=8",
    "log.save_samples=true",
]

SMALL = ["backbone.depth=1", "backbone.width=16", "backbone.heads=2", *RUN]


def what_must_not_differ(directory: RunDirectory) -> dict[str, object]:
    last = CheckpointFolder(directory.checkpoints, directory.identity).load(directory.read_state().images)
    rows = [
        (row.metric, row.value, row.interval) for row in read_rows(directory.rows) if row.protocol != SPEED_PROTOCOL
    ]
    return {
        "weights, averages, moments": {name: tensor.numpy().tobytes() for name, tensor in last.tensors.items()},
        "counters": last.facts["trainer"],
        "curve": directory.curve.read_bytes(),
        "grid": directory.grid.read_bytes(),
        "samples": (directory.samples / "adm.npz").read_bytes(),
        "rows": rows,
    }


def finished(words: list[str]) -> RunDirectory:
    config = resolve(words)
    assert run(config).status is Status.DONE
    return RunDirectory.of(config)


def equal_to(undisturbed: RunDirectory, words: list[str]) -> None:
    found, expected = what_must_not_differ(finished(words)), what_must_not_differ(undisturbed)
    assert {name: found[name] == expected[name] for name in expected} == dict.fromkeys(expected, True)


def fail_at(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    """Do `action` after that training step, once."""
    original = Trainer.step

    def stepping(trainer: Trainer) -> None:
        original(trainer)
        if trainer.steps == step:
            monkeypatch.setattr(Trainer, "step", original)
            action()

    monkeypatch.setattr(Trainer, "step", stepping)
