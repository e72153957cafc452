"""A run's averaged weights as a model folder that others can load."""

from __future__ import annotations

from pathlib import Path

from study.checkpoint import Checkpoint, CheckpointFolder, DamagedCheckpointError
from study.config import RunConfig, run_id, to_dict
from study.interchange.card import card_of
from study.interchange.layouts import layout_for
from study.interchange.model_folder import Model, write_model
from study.interchange.reading import CheckpointError
from study.results import read_rows
from study.run_directory import RunDirectory, load_config

LICENCE = "Apache-2.0"


def export_run(
    run: Path, folder: Path, decay: float | None = None, licence: str = LICENCE, images: int | None = None
) -> Model:
    """The newest whole checkpoint's weights, or those after so many images: the first average's, which was sampled."""
    config = load_config(run / "config.yaml")
    average = config.train.ema[0] if decay is None else decay
    if average not in config.train.ema:
        raise CheckpointError(f"ema={average} is not valid: {run.name} has {', '.join(map(str, config.train.ema))}")
    checkpoint = checkpoint_of(config, run, images)
    prefix = f"ema/{average}/"
    named = {name.removeprefix(prefix): value for name, value in checkpoint.tensors.items() if name.startswith(prefix)}
    model = _described(config, run, checkpoint.images, average, licence)
    network = model.network()
    network.load_state_dict(named)
    tensors = {network.reference_key(name): value for name, value in named.items()}
    write_model(folder, model, tensors, card_of(model, sum(value.numel() for value in tensors.values())))
    return model


def checkpoint_of(config: RunConfig, run: Path, images: int | None) -> Checkpoint:
    path = RunDirectory(run.parent.parent, run.name).checkpoints
    folder = CheckpointFolder(path, run_id(config), config.log.keep_every)
    if images is not None:
        there = sorted(folder.newest_first())
        if images not in there:
            known = ", ".join(map(str, there)) or "none"
            raise CheckpointError(f"images={images} is not valid: {path} has checkpoints after {known}")
        return _whole(folder, images)
    found = folder.restore_newest(lambda checkpoint: None)
    if found is None:
        raise CheckpointError(f"{path} has no whole checkpoint: the run must have trained, and kept its last one")
    return found


def _whole(folder: CheckpointFolder, images: int) -> Checkpoint:
    try:
        return folder.load(images)
    except DamagedCheckpointError as error:
        raise CheckpointError(str(error)) from error


def _described(config: RunConfig, run: Path, images: int, average: float, licence: str) -> Model:
    rows = read_rows(run / "rows.jsonl") if images >= config.train.images else []
    return Model(
        backbone=config.backbone,
        process=config.process,
        sampler=config.sample.sampler,
        layout=layout_for(config.backbone),
        licence=licence,
        origin={
            "run": run.name,
            "data": config.data.name,
            "images trained on": images,
            "of": config.train.images,
            "average": average,
            "config": to_dict(config),
        },
        metrics=tuple({"metric": r.metric, "value": r.value, "n": r.n, "protocol": r.protocol} for r in rows),
    )
