"""More scores of a finished run: its samples are read, or drawn again from its last checkpoint; nothing is trained.

Rows that are there stay. What cannot be had is said in `unscored.json`, as it is after training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from study.checkpoint import CheckpointFolder
from study.config import RunConfig
from study.quality import full_names, not_yet_scored, score_rows, unscorable
from study.results import append_rows, read_rows
from study.rows import PROVENANCE
from study.run_directory import RunDirectory
from study.sample import Samples, load_samples
from study.sample_together import draw_together
from study.train import Trainer
from study.unscored import read_unscored, write_unscored

log = logging.getLogger("study.run")

Prepare = Callable[[RunConfig], tuple[Trainer, dict[str, str]]]
"""A trainer for the config, and where its results will come from."""


def lacks_scores(config: RunConfig, directory: RunDirectory) -> bool:
    """Whether it asks for a metric that has neither a row nor its reason."""
    known = read_unscored(directory.unscored)
    impossible = full_names(config, unscorable(config))
    return bool(not_yet_scored(config, read_rows(directory.rows))) or any(
        known.get(metric) != reason for metric, reason in impossible.items()
    )


def add_scores(config: RunConfig, directory: RunDirectory, prepare: Prepare) -> None:
    """Rows, or reasons, for every metric asked for that has none."""
    metrics = not_yet_scored(config, read_rows(directory.rows))
    reasons = full_names(config, unscorable(config))
    if metrics:
        trainer, facts = prepare(config)
        samples = samples_of(config, directory, trainer)
        if samples is None:
            gone = f"neither samples nor the last checkpoint are left in {directory.path}"
            reasons |= full_names(config, dict.fromkeys(metrics, gone))
        else:
            log.info("scoring %s by %s", directory.identity, ", ".join(metrics))
            rows, missing = score_rows(
                config, samples, {key: facts[key] for key in PROVENANCE}, trainer.device, metrics
            )
            append_rows(directory.rows, rows)
            reasons |= missing
    have = {row.metric for row in read_rows(directory.rows)}
    empty = {**read_unscored(directory.unscored), **reasons}
    write_unscored(directory.unscored, {metric: reason for metric, reason in empty.items() if metric not in have})


def samples_of(config: RunConfig, directory: RunDirectory, trainer: Trainer) -> Samples | None:
    """The very samples that were drawn: sample i is a function of the weights, the seed and i."""
    try:
        return load_samples(directory.samples, range(config.sample.count))
    except ValueError:
        pass
    folder = CheckpointFolder(directory.checkpoints, directory.identity, config.log.keep_every)
    folder.restore_newest(lambda found: trainer.restore(found.tensors, found.facts["trainer"]))
    return draw_together(config, trainer, directory) if trainer.images >= config.train.images else None
