"""Scores of a run's samples: what cannot be computed is known before training, the rest computed after sampling."""

from __future__ import annotations

from collections.abc import Mapping

from study.config import RunConfig, run_id
from study.results import Row
from study.sample import Samples
from study.score.inception import InceptionWeights
from study.score.pictures import of_data, of_run
from study.score.scoring import Options, rows, score, unavailable
from study.strict import ConfigError


def unscorable(config: RunConfig) -> dict[str, str]:
    """{metric: why it will stay empty}; a metric that does not exist, or samples that do not, are refused."""
    metrics = config.score.metrics
    if metrics and not config.sample.count:
        raise ConfigError(f"score.metrics={list(metrics)} needs samples: sample.count=0 draws none")
    try:
        return unavailable(metrics, config.data.name, weights(config))
    except ValueError as error:
        raise ConfigError(f"score.{error}") from error


def score_rows(config: RunConfig, samples: Samples, facts: Mapping[str, str]) -> tuple[list[Row], dict[str, str]]:
    """The rows of every metric that has a value, and the reason for every one that has none."""
    drawn = of_run(config, samples.images, samples.labels)
    reference = of_data(config.data, "reference")
    found = score(drawn, reference, config.score.metrics, Options(weights=weights(config)))
    missing = {one.metric: one.reason for one in found if one.value is None}
    return rows(found, run_id(config), facts), missing


def weights(config: RunConfig) -> InceptionWeights:
    return InceptionWeights(config.score.inception_weights or None)
