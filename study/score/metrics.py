"""Metrics by name. `fid`, `sfid`, `kid`, `is`, `precision`... are in Inception features, as everywhere;
`fd_<space>`, `kd_<space>`, `precision_<space>`... in any other, and never called FID.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.denoiser import require, require_choice
from study.score.frechet import Moments, frechet, frechet_halves, moments
from study.score.halves import Halves, halves
from study.score.inception_weights import LOGITS, POOL, SPATIAL
from study.score.kernel_distance import kernel_distance, kernel_reference
from study.score.manifold import DENSITY_NEIGHBOURS, NAMES, PRECISION_NEIGHBOURS, manifold, manifold_sd
from study.score.sliced import PROJECTIONS, directions, project, sliced_wasserstein
from study.score.spaces import INCEPTION, Features, spaces
from study.score.strata import Strata, independent
from study.stats import Interval, t_interval, t_quantile

PAIRS = 20  # splits into halves behind an interval
MANIFOLD_PAIRS = 10
MANIFOLD_IMAGES = 200  # for an interval: of fewer, halves vary otherwise than the whole
MANIFOLD_DEGREES = 7.0  # of freedom: the splits share their images, and are worth fewer than they are, by simulation
SPLITS = 10  # of the inception score
IN_ANY_SPACE = ("fd_inf", "fd", "kd", *NAMES)
IN_INCEPTION = {
    "fid": ("fd", POOL),
    "fid_inf": ("fd_inf", POOL),
    "sfid": ("fd", SPATIAL),
    "kid": ("kd", POOL),
    "is": ("is", LOGITS),
    **{name: (name, POOL) for name in NAMES},
}
SLICED, SLICED_LIMIT, AGREEMENT = "swd", "swd_inf", "agreement"
IN_PIXELS = (SLICED, SLICED_LIMIT)


@dataclass(frozen=True)
class Metric:
    name: str
    kind: str
    space: str = ""  # "": pixels
    layer: str = ""

    def settings(self, seed: int) -> dict[str, float | int | str]:
        """What else defines the number."""
        own: dict[str, dict[str, float | int | str]] = {
            "fd": {"relative": int(self.relative)},
            "fd_inf": {"relative": int(self.relative), "pairs": PAIRS, "seed": seed},
            "kd": {"kernel": "(x.y/d+1)^3", "pairs": "all"},
            "is": {"splits": SPLITS, "seed": seed},
            SLICED: {"projections": PROJECTIONS, "seed": seed},
            SLICED_LIMIT: {"projections": PROJECTIONS, "pairs": PAIRS, "seed": seed},
            "density": {"k": DENSITY_NEIGHBOURS},
            "coverage": {"k": DENSITY_NEIGHBOURS},
            "precision": {"k": PRECISION_NEIGHBOURS},
            "recall": {"k": PRECISION_NEIGHBOURS},
            AGREEMENT: {},
        }
        return own[self.kind]

    @property
    def relative(self) -> bool:
        """Whether it is given in units of the reference's own spread, as in spaces without published numbers."""
        return self.kind in ("fd", "fd_inf") and self.space != INCEPTION

    @property
    def units(self) -> str:
        return "tr(cov ref)" if self.relative else ""


def parse(name: str, own_space: str | None) -> Metric:
    """The metric of that name; `fd`, `fd_inf`, `kd` and `agreement` alone mean the data set's own space."""
    if name in IN_PIXELS:
        return Metric(name, name)
    if name in IN_INCEPTION:
        kind, layer = IN_INCEPTION[name]
        return Metric(name, kind, INCEPTION, layer)
    kind = next((kind for kind in (*IN_ANY_SPACE, AGREEMENT) if name == kind or name.startswith(f"{kind}_")), name)
    require_choice("metric", kind, (*IN_INCEPTION, *IN_ANY_SPACE, AGREEMENT, *IN_PIXELS))
    space = name.removeprefix(kind).removeprefix("_") or own_space
    if space is None:
        raise ValueError(f"metric={name!r} needs a feature space: must be {kind}_<space>, one of {', '.join(spaces())}")
    require_choice(f"metric {name}: space", space, spaces())
    require(space != INCEPTION, "metric", name, f"{name_in_inception(kind)}, its name in Inception features")
    return Metric(f"{kind}_{space}", kind, space, "features")


def fewest(metric: Metric, width: int | None) -> int:
    """Images of each set without which there is no value; `width`: features per image, None if not known."""
    if metric.kind == "fd_inf":
        return fewest_for_halves(width or 1)
    least = {"fd": 2, "kd": 2, "is": 2 * SPLITS, SLICED: 1, SLICED_LIMIT: 4, AGREEMENT: 1}
    return least.get(metric.kind, max(PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS) + 1)


def fewest_for_halves(width: int) -> int:
    """So many that the bias of half the images is still c/N: their covariance must be regular."""
    return 2 * (width + 1)


def name_in_inception(kind: str) -> str:
    return next((name for name, (known, _) in IN_INCEPTION.items() if known == kind), "a metric that Inception has")


@dataclass(frozen=True)
class Estimate:
    value: float
    interval: Interval | None = None  # 95 %, over draws of the images
    details: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Compared:
    """One draw of samples and the reference in one layer of one space; what metrics share is computed once."""

    samples: Features  # (N, d)
    reference: Features | None
    known: Moments | None = None  # the reference's published moments
    seed: int = 0
    strata: tuple[Strata, Strata] | None = None

    @cached_property
    def reference_moments(self) -> Moments:
        return self.known or moments(self.images_of_reference)

    @property
    def images_of_reference(self) -> Features:
        if self.reference is None:
            raise ValueError("the reference has statistics but no images")
        return self.reference

    @cached_property
    def extrapolated(self) -> Halves:
        reference = self.known if self.known is not None else self.images_of_reference
        return frechet_halves(self.samples, reference, PAIRS, np.random.default_rng(self.seed), self.strata)

    @cached_property
    def manifold(self) -> dict[str, tuple[float, float]]:
        """{metric: (value, standard deviation)}; the latter NaN where the images are too few for one."""
        x, y = self.samples, self.images_of_reference
        values = manifold(x, y).means()
        strata = self.strata or (independent(len(x)), independent(len(y)))
        if min(len(x), len(y)) < MANIFOLD_IMAGES:
            return {name: (value, float("nan")) for name, value in values.items()}
        sd = manifold_sd(x, y, strata, MANIFOLD_PAIRS, np.random.default_rng(self.seed))
        return {name: (values[name], sd[name]) for name in values}

    @property
    def enough_for_halves(self) -> bool:
        """Whether there are uncertainties and a limit."""
        counts = [len(self.samples)] if self.known else [len(self.samples), len(self.images_of_reference)]
        return min(counts) >= self.fewest_for_halves

    @property
    def fewest_for_halves(self) -> int:
        return fewest_for_halves(self.samples.shape[1])


def fd(compared: Compared, relative: bool) -> Estimate:
    unit = compared.reference_moments.trace if relative else 1.0
    if not compared.enough_for_halves:
        value = frechet(moments(compared.samples), compared.reference_moments)
        return Estimate(value / unit)
    found = compared.extrapolated
    return Estimate(found.value / unit, scaled(found.interval(), unit))


def fd_inf(compared: Compared, relative: bool) -> Estimate:
    fewest = compared.fewest_for_halves
    have = min(len(compared.samples), len(compared.reference) if compared.reference is not None else fewest)
    require(compared.enough_for_halves, "images", have, f"at least {fewest} to extrapolate, twice the features")
    unit = compared.reference_moments.trace if relative else 1.0
    found = compared.extrapolated
    points = {str(size): value / unit for size, value in zip(found.sizes, found.at_sizes, strict=True)}
    return Estimate(found.limit / unit, scaled(found.limit_interval(), unit), {"at": points})


def kd(compared: Compared, relative: bool) -> Estimate:
    ours, theirs = compared.strata or (None, None)
    reference = kernel_reference(compared.images_of_reference, theirs)
    found = kernel_distance(compared.samples, reference, ours)
    return Estimate(found.value, found.interval())


def inception_score(compared: Compared, relative: bool) -> Estimate:
    """torch-fidelity's, in shuffled splits; the interval is over the splits."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    n = len(compared.samples)
    require(n >= 2 * SPLITS, "images", n, f"at least {2 * SPLITS}")
    logits = torch.from_numpy(compared.samples)
    found = isc_features_to_metric(logits, SPLITS, shuffle=True, rng_seed=compared.seed)
    mean, sd = found["inception_score_mean"], found["inception_score_std"]
    reach = interval_of_splits(sd)
    return Estimate(mean, (mean - reach, mean + reach))


def interval_of_splits(sd: float) -> float:
    """Half width from the population standard deviation over the splits."""
    low, high = t_interval(np.array([-1.0, 1.0] * (SPLITS // 2)) * sd)
    return (high - low) / 2


def on_manifold(name: str) -> Callable[[Compared, bool], Estimate]:
    """One of the four; the interval is for its expected value at this N."""

    def estimate(compared: Compared, relative: bool) -> Estimate:
        value, sd = compared.manifold[name]
        if np.isnan(sd):
            return Estimate(value)
        reach = t_quantile(MANIFOLD_DEGREES) * sd
        most = float("inf") if name == "density" else 1.0
        return Estimate(value, (max(0.0, value - reach), min(most, value + reach)))

    return estimate


def swd(samples: Tensor, reference: Tensor, seed: int) -> Estimate:
    """Root mean squared W2 of pixels over random directions. Its interval at this N is not known well enough."""
    along = directions(reference[0].numel(), np.random.default_rng(seed))
    return Estimate(sliced_wasserstein(project(samples, along), project(reference, along)))


def swd_inf(samples: Tensor, reference: Tensor, strata: tuple[Strata, Strata], seed: int) -> Estimate:
    """Its limit for many images."""
    generator = np.random.default_rng(seed)
    along = directions(reference[0].numel(), generator)
    return sliced_limit(project(samples, along), project(reference, along), strata, generator)


def sliced_limit(
    x: NDArray[np.float64], y: NDArray[np.float64], strata: tuple[Strata, Strata], generator: np.random.Generator
) -> Estimate:
    """Of images along the directions (N, k), (M, k): the squared distance is what falls off in 1/N."""
    found = halves(lambda i, j: sliced_wasserstein(x[i], y[j]) ** 2, *strata, PAIRS, generator)
    low, high = (max(end, 0.0) ** 0.5 for end in found.limit_interval())
    return Estimate(max(found.limit, 0.0) ** 0.5, (low, high))


def scaled(interval: Interval, unit: float) -> Interval:
    return interval[0] / unit, interval[1] / unit


ESTIMATORS: dict[str, Callable[[Compared, bool], Estimate]] = {
    "fd": fd,
    "fd_inf": fd_inf,
    "kd": kd,
    "is": inception_score,
    **{name: on_manifold(name) for name in NAMES},
}
