"""Samples of a model folder, as the batch that ADM's evaluator and `python -m study.score` read.

Every batch is kept beside the output until that is whole: called again after a kill, only what is missing is drawn,
or all, if the samples asked for are others. Under torchrun every process draws its share.
"""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.denoiser import require
from study.data.images import to_uint8
from study.diffusion import SamplerConfig, make_process
from study.distributed import Ranks
from study.interchange.model_folder import load_model
from study.interchange.reading import CheckpointError
from study.latents.autoencoder import Autoencoder, load_autoencoder
from study.optimizer import AUTOCAST
from study.sample import Drawing, Tell, drop_others, fill, load_samples
from study.sample_files import write_for_adm


@dataclass(frozen=True)
class Wishes:
    """How many samples, and by what machine."""

    count: int
    seed: int = 0
    labels: str = "random"  # as the papers draw them; balanced: classes in turn
    batch: int = 50
    device: str = "cpu"
    precision: str = "fp32"
    autoencoder: str = ""  # a folder, or a hub id; "": the network makes pixels
    scale: float | None = None  # of latents; None: what the autoencoder's config says


def draw(
    folder: Path, out: Path, wishes: Wishes, changes: dict[str, Any], ranks: Ranks, tell: Tell = lambda done: None
) -> SamplerConfig:
    """Write `out`; `changes` are fields of the sampler that are not to be the model's own."""
    require(wishes.count > 0, "count", wishes.count, "a positive integer")
    network, model = load_model(folder)
    sampler = SamplerConfig(**{**vars(model.sampler), **changes})
    device = torch.device(wishes.device)
    autoencoder = autoencoder_for(model.backbone.latent_factor, wishes)
    decode = to_uint8 if autoencoder is None else autoencoder.to(device).decode
    process = make_process(model.process)
    drawing = Drawing(
        network.to(device),
        process,
        sampler,
        wishes.seed,
        wishes.labels,
        wishes.batch,
        decode=decode,
        decoder="" if autoencoder is None else f"{autoencoder.digest()}, scale {autoencoder.scale}",
        precision=wishes.precision,
        tell=tell,
    )
    shards = out.with_name(f"{out.stem}.parts")
    dtype = AUTOCAST.get(wishes.precision)

    def draw_share() -> None:
        if mine := ranks.share(wishes.count):
            with torch.autocast(device.type, dtype) if dtype else nullcontext():
                fill(shards, drawing, mine)

    def collect() -> None:
        write_for_adm(out, load_samples(shards, range(wishes.count)))
        shutil.rmtree(shards)

    out.parent.mkdir(parents=True, exist_ok=True)
    ranks.first_alone(lambda: drop_others(shards, drawing.meaning()))
    ranks.together(draw_share)
    ranks.first_alone(collect)
    return sampler


def autoencoder_for(latent_factor: int, wishes: Wishes) -> Autoencoder | None:
    """What decodes what the network makes; None where that is pixels."""
    if latent_factor == 1:
        if wishes.autoencoder:
            raise CheckpointError("--autoencoder does not go with a network that makes pixels")
        return None
    if not wishes.autoencoder:
        raise CheckpointError(
            "this network makes latents: name the autoencoder that decodes them, --autoencoder FOLDER "
            "(such as a copy of stabilityai/sd-vae-ft-ema)"
        )
    found = load_autoencoder(wishes.autoencoder, wishes.scale)
    require(found.factor == latent_factor, "autoencoder", f"factor {found.factor}", f"one of factor {latent_factor}")
    return found
