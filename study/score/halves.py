"""Value at N, limit for large N and uncertainty of a distance, from complementary halves of the images.

For a distance T with T_N = T + c/N + linear noise + quadratic noise, split the images at random into
halves A and B:
    (T_A + T_B)/2 - T_N   has mean c/N, the extrapolation in 1/N, and the quadratic noise's variance;
    (T_A - T_B)/2         has mean 0 and the linear noise's variance, plus twice the quadratic one's.
Unlike the bootstrap it never sees an image twice, which a distance would take for structure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.denoiser import require
from study.score.intervals import distance_interval
from study.score.strata import Strata
from study.stats import Interval

Statistic = Callable[[NDArray[np.intp], NDArray[np.intp]], float]
"""(indices into the samples, indices into the reference) -> value"""


@dataclass(frozen=True)
class Halves:
    value: float  # at (n, m)
    limit: float  # extrapolated to 1/n = 1/m = 0
    linear: float  # variance over draws of samples and reference, by its two sources
    quadratic: float
    pairs: int
    sizes: tuple[int, int]  # images of the samples at the two points of the extrapolation
    at_sizes: tuple[float, float]

    def interval(self) -> Interval:
        """95 %, for the expected value at this N."""
        low, high = distance_interval(self.limit, self.linear, self.quadratic, self._degrees())
        return low + self.value - self.limit, high + self.value - self.limit

    def limit_interval(self) -> Interval:
        """95 %, for the value of infinitely many images."""
        quadratic = self.quadratic * (1 + 1 / self.pairs)
        return distance_interval(self.limit, self.linear, quadratic, self._degrees())

    def _degrees(self) -> float:
        """Satterthwaite's: the variance is (T_A - T_B)^2/4 less the excess's variance, each from `pairs` splits."""
        total, difference = self.linear + self.quadratic, self.linear + 2 * self.quadratic
        noise = difference**2 + self.quadratic**2
        return self.pairs * total**2 / noise if noise else 1.0


def halves(
    statistic: Statistic, samples: Strata, reference: Strata, pairs: int, generator: np.random.Generator
) -> Halves:
    """`pairs` random splits, each stratum in equal parts; an empty reference is left alone."""
    n, m = len(samples), len(reference)
    require(pairs >= 2, "pairs", pairs, "at least 2")
    require(n >= 4 and (m >= 4 or m == 0), "images", (n, m), "at least 4 to be halved")
    whole = statistic(np.arange(n), np.arange(m))
    splits = [(split(samples, generator), split(reference, generator)) for _ in range(pairs)]
    parts = np.array([[statistic(x[side], y[side]) for side in (0, 1)] for x, y in splits])  # (pairs, 2)
    excess = parts.mean(axis=1) - whole
    difference = float(np.mean((parts[:, 0] - parts[:, 1]) ** 2)) / 4
    quadratic = float(np.var(excess, ddof=1))
    return Halves(
        value=whole,
        limit=whole - float(excess.mean()),
        linear=max(difference - 2 * quadratic, 0.0),
        quadratic=quadratic,
        pairs=pairs,
        sizes=(n, n // 2),
        at_sizes=(whole, float(parts.mean())),
    )


def split(strata: Strata, generator: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Two disjoint halves that share out every stratum; of an odd count one stays out."""
    order = generator.permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    return order[0 : len(order) // 2 * 2 : 2], order[1::2]
