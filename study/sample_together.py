"""A run's samples, by one process or all of its ranks: each draws its share into the run's folder."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable

from study.config import RunConfig
from study.data import offered
from study.latents.decode import decoder_of
from study.run_directory import RunDirectory
from study.sample import (
    IN_MEMORY,
    Drawing,
    Samples,
    Tell,
    draw,
    drop_others,
    fill,
    load_samples,
)
from study.sample_files import write_for_adm, write_grid
from study.train import Trainer

IN_GRID = 100


def draw_together(
    config: RunConfig,
    trainer: Trainer,
    directory: RunDirectory,
    check: Callable[[], object] = lambda: None,
    tell: Tell = lambda done: None,
) -> Samples | None:
    """All samples, from the first average, and their files, on rank 0; None on the others.

    Many, or those of several ranks, go through shards in the run's folder: what a killed call drew is not drawn
    again, and only a batch is in memory. `check` may raise to stop, on one rank or all: then all do. `tell` hears
    of this rank's share.
    """
    ranks, count, folder = trainer.ranks, config.sample.count, directory.samples
    drawing = Drawing(
        trainer.average(),
        trainer.process,
        config.sample.sampler,
        seed=config.sample.seed,
        labels=config.sample.labels,
        batch_size=config.machine.sample_batch,
        decode=decoder_of(config.data, trainer.device),
        precision=config.train.precision,
        check=check,
        tell=tell,
    )
    if ranks.world_size == 1 and not config.log.save_samples and image_bytes(config) <= IN_MEMORY:
        with trainer.autocast():
            return _shown(draw(drawing, range(count)), directory)

    def draw_share() -> None:
        if mine := ranks.share(count):
            with trainer.autocast():
                fill(folder, drawing, mine)

    found: list[Samples] = []
    ranks.first_alone(lambda: drop_others(folder, drawing.meaning()))
    ranks.together(draw_share)
    ranks.first_alone(lambda: found.append(_collected(config, directory)))
    return found[0] if found else None


def image_bytes(config: RunConfig) -> int:
    """Of all samples, as pixels."""
    offer = offered(config.data)
    channels = offer.channels if offer.latent_factor == 1 else 3
    return config.sample.count * channels * math.prod(offer.size) * offer.latent_factor**2


def _collected(config: RunConfig, directory: RunDirectory) -> Samples:
    """Every sample has its shard by now. The shards go if the run is not to keep its samples."""
    samples = load_samples(directory.samples, range(config.sample.count))
    if config.log.save_samples:
        write_for_adm(directory.samples / "adm.npz", samples)
    else:
        shutil.rmtree(directory.samples)
    return _shown(samples, directory)


def _shown(samples: Samples, directory: RunDirectory) -> Samples:
    """The same, and a grid of the first."""
    if samples.images.shape[1] in (1, 3):
        write_grid(directory.grid, samples.images[:IN_GRID])
    return samples
