"""What a metric needs, asked before a run is started: weights, enough images, labels, images that fit the network."""

from __future__ import annotations

from collections.abc import Iterable

from study.data import DataConfig, offered
from study.score.extractors import config_of, manifest
from study.score.inception_weights import InceptionWeights
from study.score.metrics import AGREEMENT, Metric, fewest, parse
from study.score.protocol import size_label
from study.score.scoring import WITHOUT_REFERENCE, own_space
from study.score.spaces import missing, width


def unavailable(
    metrics: Iterable[str], data: DataConfig, n: int, labelled: bool, weights: InceptionWeights
) -> dict[str, str]:
    """{metric: why n samples of a model of these data will have no value here}."""
    parsed = {name: parse(name, own_space(data.name)) for name in metrics}
    spaces = {metric.space for metric in parsed.values()} - {""}
    absent = {space: missing(space, weights) for space in spaces}
    reasons = {
        name: absent.get(metric.space) or misfit(metric, data, labelled) or too_few(metric, data, n)
        for name, metric in parsed.items()
    }
    return {name: reason for name, reason in reasons.items() if reason}


def full_name(name: str, data: DataConfig, n: int) -> str:
    """As in a row: fd -> fd_glyphs16@5k."""
    return f"{parse(name, own_space(data.name)).name}@{size_label(n)}"


def misfit(metric: Metric, data: DataConfig, labelled: bool) -> str | None:
    """Why the network cannot look at these images."""
    if metric.kind == AGREEMENT and not labelled:
        return "samples without labels: class agreement needs the class asked of each"
    if metric.space not in manifest():
        return None
    network, offer = config_of(manifest()[metric.space]["network"]), offered(data)
    if offer.size != (network.side, network.side) or offer.channels > network.channels:
        ours, theirs = f"{offer.channels} x {offer.size[0]} x {offer.size[1]}", f"{network.channels} x {network.side} x"
        return f"{metric.space} looks at images of {theirs} {network.side}, and those of {data.name} are {ours}"
    return None


def too_few(metric: Metric, data: DataConfig, n: int) -> str | None:
    """Of samples, or of reference images."""
    least = fewest(metric, width(metric.space, metric.layer))
    counts = (
        {"sample.count": n}
        if metric.kind in WITHOUT_REFERENCE
        else {"sample.count": n, "data.reference": data.images("reference")}
    )
    short = next(((name, count) for name, count in counts.items() if count < least), None)
    return f"{short[0]}={short[1]} is too few: must be at least {least}" if short else None
