"""Scores of a run's samples: what cannot be computed is known before training, the rest computed after sampling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from study.config import RunConfig, run_id
from study.results import Row
from study.sample import Samples
from study.score.foresight import full_name, unavailable
from study.score.inception_weights import InceptionWeights
from study.score.pictures import of_data, of_run
from study.score.scoring import Options, cache_folder, floor, rows, score
from study.strict import ConfigError
from study.unscored import lines_of_many


def unscorable(config: RunConfig) -> dict[str, str]:
    """{metric: why it will stay empty}; a metric that does not exist, or samples that do not, are refused."""
    metrics = config.score.metrics
    if metrics and not config.sample.count:
        raise ConfigError(f"score.metrics={list(metrics)} needs samples: sample.count=0 draws none")
    try:
        labelled = config.backbone.classes > 0
        return unavailable(metrics, config.data, config.sample.count, labelled, weights(config))
    except ValueError as error:
        raise ConfigError(f"score.{error}") from error


def empty_columns(configs: Iterable[RunConfig]) -> list[str]:
    """One line per reason why metrics of these runs will stay empty; to be asked before any of them is launched."""
    known: dict[tuple[object, ...], dict[str, str]] = {}
    found = []
    for config in configs:
        key = (config.score, config.data, config.sample.count, config.backbone.classes > 0)
        if key not in known:
            known[key] = full_names(config, unscorable(config))
        found.append(known[key])
    return lines_of_many(found)


def score_rows(
    config: RunConfig,
    samples: Samples,
    facts: Mapping[str, str],
    device: torch.device,
    metrics: Sequence[str] | None = None,
) -> tuple[list[Row], dict[str, str]]:
    """The rows of every metric that has a value, the floor's first; and the reason for every one that has none.

    Extractors run on `device`.
    """
    asked = config.score.metrics if metrics is None else metrics
    drawn = of_run(config, samples.images, samples.labels)
    reference = of_data(config.data, "reference")
    options = Options(weights=weights(config), device=str(device), cache=cache_folder())
    real = floor(reference, len(drawn), asked, options)
    found = score(drawn, reference, asked, options)
    missing = {one.metric: one.reason for one in found if one.value is None}
    return rows([*real, *found], run_id(config), facts), missing


def not_yet_scored(config: RunConfig, done: Sequence[Row]) -> list[str]:
    """Metrics asked for that a finished run has no row of, but could have."""
    have, impossible = {row.metric for row in done}, unscorable(config)
    asked = [metric for metric in config.score.metrics if metric not in impossible]
    return [metric for metric in asked if full_name(metric, config.data, config.sample.count) not in have]


def full_names(config: RunConfig, reasons: Mapping[str, str]) -> dict[str, str]:
    """The same reasons by the metrics' names in rows."""
    return {full_name(metric, config.data, config.sample.count): reason for metric, reason in reasons.items()}


def weights(config: RunConfig) -> InceptionWeights:
    return InceptionWeights(config.score.inception_weights or None)
