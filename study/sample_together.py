"""A run's samples, drawn by all of its ranks: each draws its share into the run's folder, rank 0 puts them together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace

from study.config import RunConfig
from study.run_directory import RunDirectory
from study.sample import Samples, draw_samples, sample
from study.train import Trainer


def draw_together(
    config: RunConfig, trainer: Trainer, directory: RunDirectory, check: Callable[[], object]
) -> Samples | None:
    """All samples, and their files, on rank 0; None on the others. What a killed call drew is not drawn again.

    `check` may raise to stop, on one rank or all: then all do.
    """
    ranks = trainer.ranks
    if ranks.world_size == 1:
        return draw_samples(config, trainer, directory, check)
    ranks.together(lambda: _draw_share(config, trainer, directory, check))
    return _collected(config, trainer, directory) if ranks.is_first else None


def _draw_share(config: RunConfig, trainer: Trainer, directory: RunDirectory, check: Callable[[], object]) -> None:
    mine = trainer.ranks.share(config.sample.count)
    if not mine:
        return
    with trainer.autocast():
        sample(
            trainer.averages[0],
            trainer.process,
            config.sample.sampler,
            mine,
            seed=config.sample.seed,
            labels=config.sample.labels,
            batch_size=config.machine.sample_batch,
            folder=directory.samples,
            check=check,
        )


def _collected(config: RunConfig, trainer: Trainer, directory: RunDirectory) -> Samples:
    """Every sample has its shard by now: none is drawn. The shards go if the run is not to keep its samples."""
    samples = draw_samples(replace(config, log=replace(config.log, save_samples=True)), trainer, directory)
    if not config.log.save_samples:
        shutil.rmtree(directory.samples)
    return samples
