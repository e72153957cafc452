"""A run's averaged weights as a model folder that others can load."""

from __future__ import annotations

from pathlib import Path

from study.checkpoint import Checkpoint, CheckpointFolder
from study.config import RunConfig, run_id, to_dict
from study.interchange.card import card_of
from study.interchange.layouts import layout_for
from study.interchange.model_folder import Model, write_model
from study.interchange.reading import CheckpointError
from study.results import read_rows
from study.run_directory import RunDirectory, load_config

LICENCE = "Apache-2.0"


def export_run(run: Path, folder: Path, decay: float | None = None, licence: str = LICENCE) -> Model:
    """The weights of the newest whole checkpoint, those of one average: the first, whose samples were scored."""
    config = load_config(run / "config.yaml")
    average = config.train.ema[0] if decay is None else decay
    if average not in config.train.ema:
        raise CheckpointError(f"ema={average} is not valid: {run.name} has {', '.join(map(str, config.train.ema))}")
    checkpoint = newest(config, run)
    prefix = f"ema/{average}/"
    named = {name.removeprefix(prefix): value for name, value in checkpoint.tensors.items() if name.startswith(prefix)}
    model = _described(config, run, checkpoint.images, average, licence)
    network = model.network()
    network.load_state_dict(named)
    tensors = {network.reference_key(name): value for name, value in named.items()}
    write_model(folder, model, tensors, card_of(model, sum(value.numel() for value in tensors.values())))
    return model


def newest(config: RunConfig, run: Path) -> Checkpoint:
    """The last checkpoint that is whole."""
    path = RunDirectory(run.parent.parent, run.name).checkpoints
    found = CheckpointFolder(path, run_id(config), config.log.keep_every).restore_newest(lambda checkpoint: None)
    if found is None:
        raise CheckpointError(f"{path} has no whole checkpoint: the run must have trained, and kept its last one")
    return found


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
