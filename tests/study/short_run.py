"""A run of a dozen steps that still does everything, and what two executions of it must share to the byte."""

from __future__ import annotations

from study.checkpoint import CheckpointFolder
from study.results import read_rows
from study.rows import SPEED_PROTOCOL
from study.run_directory import RunDirectory

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


def what_must_not_differ(directory: RunDirectory) -> dict[str, object]:
    last = CheckpointFolder(directory.checkpoints, directory.identity).load(IMAGES)
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
