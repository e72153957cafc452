"""A run's samples, drawn by all of its ranks: each draws its share into the run's folder, rank 0 puts them together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace

from study.config import RunConfig
from study.run_directory import RunDirectory
from study.sample import Samples, Tell, draw_samples, draw_some, drop_stale
from study.train import Trainer


def draw_together(
    config: RunConfig, trainer: Trainer, directory: RunDirectory, check: Callable[[], object], tell: Tell
) -> Samples | None:
    """All samples, and their files, on rank 0; None on the others. What a killed call drew is not drawn again.

    `check` may raise to stop, on one rank or all: then all do. `tell` hears of this rank's share.
    """
    ranks = trainer.ranks
    if ranks.world_size == 1:
        return draw_samples(config, trainer, directory, check, tell)
    mine, folder = ranks.share(config.sample.count), directory.samples
    found: list[Samples] = []

    def draw_share() -> None:
        if mine:
            draw_some(config, trainer, mine, folder, check, tell)

    ranks.first_alone(lambda: drop_stale(config, trainer, folder))
    ranks.together(draw_share)
    ranks.first_alone(lambda: found.append(_collected(config, trainer, directory)))
    return found[0] if found else None


def _collected(config: RunConfig, trainer: Trainer, directory: RunDirectory) -> Samples:
    """Every sample has its shard by now: none is drawn. The shards go if the run is not to keep its samples."""
    samples = draw_samples(replace(config, log=replace(config.log, save_samples=True)), trainer, directory)
    if not config.log.save_samples:
        shutil.rmtree(directory.samples)
    return samples
