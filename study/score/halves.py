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
from study.stats import Interval, t_quantile

Statistic = Callable[[NDArray[np.intp], NDArray[np.intp]], float]
"""(indices into the samples, indices into the reference) -> value"""


@dataclass(frozen=True)
class Halves:
    value: float  # at (n, m)
    limit: float  # extrapolated to 1/n = 1/m = 0
    sd: float  # of the value over draws of samples and reference
    limit_sd: float
    pairs: int
    sizes: tuple[int, int]  # images of the samples at the two points of the extrapolation
    at_sizes: tuple[float, float]

    def interval(self) -> Interval:
        """95 %, for the expected value at this N."""
        return self._around(self.value, self.sd)

    def limit_interval(self) -> Interval:
        """95 %, for the value of infinitely many images."""
        return self._around(self.limit, self.limit_sd)

    def _around(self, centre: float, sd: float) -> Interval:
        reach = t_quantile(self.pairs) * sd
        return centre - reach, centre + reach


def halves(statistic: Statistic, n: int, m: int, pairs: int, generator: np.random.Generator) -> Halves:
    """`pairs` random splits; m = 0 leaves the reference alone."""
    require(pairs >= 2, "pairs", pairs, "at least 2")
    require(n >= 4 and (m >= 4 or m == 0), "n", (n, m), "at least 4 images to be halved")
    whole = statistic(np.arange(n), np.arange(m))
    splits = [(split(n, generator), split(m, generator)) for _ in range(pairs)]
    parts = np.array([[statistic(x[side], y[side]) for side in (0, 1)] for x, y in splits])  # (pairs, 2)
    excess = parts.mean(axis=1) - whole
    linear = float(np.mean((parts[:, 0] - parts[:, 1]) ** 2)) / 4
    quadratic = float(np.var(excess, ddof=1))
    variance = max(linear - quadratic, linear / 2)  # half: nothing but quadratic noise
    return Halves(
        value=whole,
        limit=whole - float(excess.mean()),
        sd=variance**0.5,
        limit_sd=(variance + quadratic / pairs) ** 0.5,
        pairs=pairs,
        sizes=(n, n // 2),
        at_sizes=(whole, float(parts.mean())),
    )


def split(count: int, generator: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Two disjoint halves; of an odd count one stays out."""
    order = generator.permutation(count)
    return order[: count // 2], order[count // 2 : 2 * (count // 2)]
