"""Samples against a reference: features once per space, then every metric, each with its N, interval and protocol."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from models.denoiser import require
from study.atomic import canonical_json, user_cache, write_file
from study.results import Row
from study.score.agreement import agreement_hits
from study.score.extractors import manifest
from study.score.frechet import Moments
from study.score.inception_weights import InceptionWeights
from study.score.metrics import (
    AGREEMENT,
    ESTIMATORS,
    IN_PIXELS,
    SLICED,
    SLICED_LIMIT,
    Compared,
    Estimate,
    Metric,
    parse,
    swd,
    swd_inf,
)
from study.score.pictures import Pictures, held_out_from
from study.score.protocol import VERSION, Protocol, size_label
from study.score.spaces import INCEPTION, Features, Space, as_channels, missing, open_space, sha256_of_space
from study.score.strata import Strata, strata_of
from study.stats import Interval, t_interval, wilson_interval

log = logging.getLogger(__name__)

Told = Callable[[str, int, int], None]
"""(what, images done by this call, images in all)"""


FRECHET = ("fd", "fd_inf")
WITHOUT_REFERENCE = ("is", AGREEMENT)
STRATIFIED = ("fd_inf", "kd", SLICED_LIMIT)  # values that classes in equal numbers change
FLOOR = ".real"  # ends the name of what real images score that the reference does not hold


@dataclass(frozen=True)
class Options:
    n: int | None = None  # samples per draw; None: all of them
    draws: int = 1  # disjoint draws of n samples
    seed: int = 0  # of projections, splits and halves
    weights: InceptionWeights = field(default_factory=InceptionWeights)
    device: str = "cpu"
    cache: Path | None = None  # folder for real images' features


@dataclass(frozen=True)
class Score:
    """One metric. A value of None has a reason instead."""

    metric: str  # with its N: fd_glyphs16@5k
    protocol: Protocol
    value: float | None
    units: str = ""
    interval: Interval | None = None  # 95 %: over draws of images, or over the disjoint draws if there are several
    draws: tuple[float, ...] = ()  # the value of each disjoint draw
    reason: str = ""
    details: Mapping[str, object] = field(default_factory=dict)


def score(
    samples: Pictures,
    reference: Pictures,
    metrics: Sequence[str],
    options: Options | None = None,
    told: Told = lambda what, done, total: None,
) -> list[Score]:
    """One Score per metric, in the order asked for."""
    options = options or Options()
    check_sizes(samples, reference, options)
    asked = [parse(name, own_space(reference.data or samples.data)) for name in metrics]
    scoring = _Scoring(samples, reference, asked, options, told)
    return [scoring.score(metric) for metric in asked]


def floor(
    reference: Pictures, n: int, metrics: Sequence[str], options: Options, told: Told = lambda what, done, total: None
) -> list[Score]:
    """What real images score that the reference does not hold: no model can be told from the data below that."""
    real = held_out_from(reference, n)
    if real is None:
        return []
    found = score(real, reference, metrics, replace(options, n=None, draws=1), told)
    return [replace(one, metric=one.metric + FLOOR) for one in found]


def own_space(data: str | None) -> str | None:
    """The embedded extractor of a data set, if it has one."""
    return data if data in manifest() else None


def check_sizes(samples: Pictures, reference: Pictures, options: Options) -> None:
    same = samples.images.shape[2:] == reference.images.shape[2:]
    sizes = tuple(samples.images.shape[2:]), tuple(reference.images.shape[2:])
    require(same, f"{samples.name}: image size", sizes[0], f"{sizes[1]}, as {reference.name} has")
    require(options.draws >= 1, "draws", options.draws, "at least 1")
    wanted = draw_size(samples, options) * options.draws
    enough = 0 < wanted <= len(samples)
    require(enough, f"{samples.name}: images", len(samples), f"at least {max(wanted, options.draws)}, as asked for")


def check_device(name: str) -> None:
    try:
        torch.empty(1, device=torch.device(name))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device={name!r} is not usable here: {str(error).splitlines()[0]}") from error


def draw_size(samples: Pictures, options: Options) -> int:
    return len(samples) // options.draws if options.n is None else options.n


class _Scoring:
    """The features of one call, and what is computed from them."""

    def __init__(
        self, samples: Pictures, reference: Pictures, asked: Sequence[Metric], options: Options, told: Told
    ) -> None:
        self.reference, self.asked, self.options, self.told = reference, asked, options, told
        self.reference_sha256 = reference.sha256
        self.n = draw_size(samples, options)
        self.draws = [samples.part(start * self.n, (start + 1) * self.n) for start in range(options.draws)]
        self.device = torch.device(options.device)
        names = {metric.space for metric in asked if metric.space}
        self.missing = {name: missing(name, options.weights) for name in names}
        self.shas = {"": ""} | {
            name: "" if why else sha256_of_space(name, options.weights) for name, why in self.missing.items()
        }
        self.layers = {name: sorted({m.layer for m in asked if m.space == name}) for name in names}
        self.compared: dict[tuple[str, str], list[Compared]] = {}

    def score(self, metric: Metric) -> Score:
        reason = self.missing.get(metric.space)
        estimates: list[Estimate] = []
        if not reason:
            try:
                estimates = self.estimates(metric)
            except ValueError as error:
                reason = str(error)
        name = f"{metric.name}@{size_label(self.n)}"
        if reason:
            return Score(name, self.protocol(metric), None, metric.units, reason=reason)
        first = estimates[0]
        whole = Score(name, self.protocol(metric), first.value, metric.units, first.interval, details=first.details)
        if len(estimates) == 1:
            return whole
        values = tuple(estimate.value for estimate in estimates)
        return replace(whole, value=float(np.mean(values)), interval=t_interval(values), draws=values, details={})

    def estimates(self, metric: Metric) -> list[Estimate]:
        if metric.kind in IN_PIXELS:
            return [self.in_pixels(metric, draw) for draw in self.draws]
        if metric.kind == AGREEMENT:
            return [agreement(draw, metric.space) for draw in self.draws]
        return [ESTIMATORS[metric.kind](compared, metric.relative) for compared in self.layer(metric)]

    def in_pixels(self, metric: Metric, draw: Pictures) -> Estimate:
        reference, seed = self.reference.images, self.options.seed
        images = as_channels(draw.images, reference.shape[1])
        if metric.kind == SLICED:
            return swd(images, reference, seed)
        return swd_inf(images, reference, self.strata(draw), seed)

    def strata(self, draw: Pictures) -> tuple[Strata, Strata]:
        return strata_of(draw.labels, len(draw)), strata_of(self.reference.labels, len(self.reference))

    def layer(self, metric: Metric) -> list[Compared]:
        if (metric.space, metric.layer) not in self.compared:
            self._embed(metric.space)
        return self.compared[metric.space, metric.layer]

    def protocol(self, metric: Metric) -> Protocol:
        known = metric.kind in FRECHET and metric.layer in self.published(metric.space)
        alone = metric.kind in WITHOUT_REFERENCE
        settings = metric.settings(self.options.seed)
        if metric.kind in STRATIFIED:
            settings["classes"] = "/".join(str(strata.max() + 1) for strata in self.strata(self.draws[0]))
        return Protocol(
            metric=metric.name,
            n=self.n,
            reference="" if alone else self.reference.name,
            reference_sha256="" if alone else self.reference_sha256,
            n_reference=0 if known or alone else len(self.reference),
            space=metric.space,
            space_sha256=self.shas[metric.space],
            layer=metric.layer,
            settings=settings,
            sampling=self.draws[0].sampling,
        )

    def published(self, space: str) -> Mapping[str, Moments]:
        return self.reference.statistics if space == INCEPTION else {}

    def _embed(self, name: str) -> None:
        """Every layer asked of a space, for all draws and the reference, in one pass each."""
        space = open_space(name, self.options.weights, self.device, self.layers[name])
        drawn = [self._features(draw, space, self.n * len(self.draws), draw.source is not None) for draw in self.draws]
        known = self.published(name)
        needed = any(m.kind not in FRECHET or m.layer not in known for m in self.asked if m.space == name)
        reference = self._features(self.reference, space, len(self.reference), True) if needed else {}
        statistics = self.published(name)
        for layer in drawn[0]:
            self.compared[name, layer] = [
                Compared(
                    features[layer], reference.get(layer), statistics.get(layer), self.options.seed, self.strata(draw)
                )
                for draw, features in zip(self.draws, drawn, strict=True)
            ]

    def _features(self, pictures: Pictures, space: Space, total: int, keep: bool) -> dict[str, Features]:
        """Of every image; real ones' are kept in the cache if there is one."""

        def compute() -> dict[str, Features]:
            what = f"{pictures.name} in {space.name}"
            return space.features(pictures.images, self.device, told=lambda done: self.told(what, done, total))

        if self.options.cache is None or not keep:
            return compute()
        sha256 = self.reference_sha256 if pictures is self.reference else pictures.sha256
        key = features_key(space, self.layers[space.name], sha256, self.device)
        return cached(self.options.cache / f"{space.name}-{key}.npz", compute)


def agreement(draw: Pictures, data: str) -> Estimate:
    if draw.labels is None:
        raise ValueError(f"{draw.name} has no labels: class agreement needs the class asked of each sample")
    hits = agreement_hits(draw.images, draw.labels, data)
    return Estimate(hits / len(draw), wilson_interval(hits, len(draw)))


def features_key(space: Space, layers: Sequence[str], images_sha256: str, device: torch.device) -> str:
    """Everything that defines the features, so that another set, network, layer or library never answers."""
    meaning = {
        "images": images_sha256,
        "space": space.name,
        "weights": space.sha256,
        "layers": list(layers),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "matmul": torch.get_float32_matmul_precision(),
        "version": VERSION,
        **{package: version(package) for package in ("torch", "torchvision", "torch-fidelity")},
    }
    return hashlib.sha256(canonical_json(meaning).encode()).hexdigest()[:24]


def cached(path: Path, compute: Callable[[], dict[str, Features]]) -> dict[str, Features]:
    """The arrays in the file, or computed and put there; a damaged file is computed again."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        pass
    except Exception as error:  # whatever a damaged archive raises
        log.warning("%s is damaged and will be computed again: %s", path, error)
    features = compute()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **features)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, write)
    except OSError as error:
        log.warning("%s cannot be kept for the next time: %s", path, error)
    return features


def cache_folder() -> Path:
    return user_cache() / "references"


def rows(scores: Iterable[Score], run: str, provenance: Mapping[str, str]) -> list[Row]:
    """The scores that have a value; the spread over disjoint draws is a row of its own, apart from training seeds."""
    found: list[Row] = []
    for one in scores:
        if one.value is None:
            continue
        made = one.protocol
        facts = {
            "extractor": made.space,
            "extractor_sha256": made.space_sha256,
            "n_reference": str(made.n_reference),
            "reference": made.reference,
            "reference_sha256": made.reference_sha256,
        }
        row = Row(
            run=run,
            metric=one.metric,
            value=one.value,
            units=one.units,
            n=made.n,
            interval=one.interval,
            protocol=made.id,
            provenance={**provenance, **facts},
        )
        found.append(row)
        if one.draws:
            spread = float(np.std(one.draws, ddof=1))
            found.append(replace(row, metric=f"{one.metric}.draw_sd", value=spread, n=len(one.draws), interval=None))
    return found
