"""Kernel distance: the unbiased squared MMD with KID's cubic kernel (Binkowski et al. 2018), and its interval.

All pairs are used, in float64. In Inception features this estimates the same number as torch-fidelity's
mean over subsets, with the least variance that the images allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from models.denoiser import require
from study.score.intervals import distance_interval
from study.score.strata import Strata, independent
from study.stats import Interval

Array = NDArray[np.float64]

BLOCK = 2048  # rows of a kernel matrix held at once
MOST_DEGREES = 20.0  # of freedom: a cubic kernel's tails are too heavy for the normal quantile, by simulation


@dataclass(frozen=True)
class KernelDistance:
    value: float  # may be slightly negative: it is unbiased
    linear: float  # variance over draws of both sets, by its two sources
    quadratic: float
    degrees: float  # of freedom of that variance

    @property
    def sd(self) -> float:
        return (self.linear + self.quadratic) ** 0.5

    def interval(self) -> Interval:
        """95 %, for the distance between the two distributions."""
        return distance_interval(self.value, self.linear, self.quadratic, self.degrees)


@dataclass(frozen=True)
class KernelMeans:
    """One kernel matrix (n, m), averaged over the strata of its columns, of its rows, and over all."""

    by_row: Array  # (n, strata of the columns)
    by_column: Array  # (strata of the rows, m)
    cells: Array  # (strata of the rows, strata of the columns)
    square: float  # mean of the squares
    row_shares: Array  # of the strata
    column_shares: Array

    @property
    def rows(self) -> Array:
        return self.by_row @ self.column_shares

    @property
    def columns(self) -> Array:
        return self.row_shares @ self.by_column

    @property
    def mean(self) -> float:
        return float(self.row_shares @ self.cells @ self.column_shares)

    def of_pairs(self) -> float:
        """Variance that neither an image's row nor its column explains, within the cells of strata."""
        rows = float((self.by_row**2 @ self.column_shares).mean())
        columns = float((self.row_shares @ self.by_column**2).mean())
        cells = float(self.row_shares @ self.cells**2 @ self.column_shares)
        return max(self.square - rows - columns + cells, 0.0)


@dataclass(frozen=True, eq=False)
class KernelReference:
    """A set that others are compared with; its own kernel matrix is averaged once."""

    features: Array  # (m, d)
    strata: Strata

    @cached_property
    def within(self) -> KernelMeans:
        return kernel_means(self.features, self.features, self.strata, self.strata, within=True)


def kernel_reference(features: NDArray[np.floating], strata: Strata | None = None) -> KernelReference:
    require(len(features) >= 2, "images", len(features), "at least 2")
    return KernelReference(features.astype(np.float64), independent(len(features)) if strata is None else strata)


def kernel_distance(
    samples: NDArray[np.floating], reference: KernelReference, strata: Strata | None = None
) -> KernelDistance:
    """Squared MMD and its standard deviation.

    The row means' variance counts the noise of pairs twice (Hoeffding); what pairs contribute is taken off once.
    """
    d, expected = samples.shape[1], reference.features.shape[1]
    require(d == expected, "features.d", d, f"{expected}, as the reference has")
    ours = kernel_reference(samples, strata)
    a, b, n, m = ours.strata, reference.strata, len(samples), len(reference.features)
    xx, yy, xy = ours.within, reference.within, kernel_means(ours.features, reference.features, a, b)
    x_part, x_degrees = within_variance(xx.rows - xy.rows, a)
    y_part, y_degrees = within_variance(yy.rows - xy.columns, b)
    x_part, y_part = 4 * x_part / n, 4 * y_part / m
    quadratic = 2 * xx.of_pairs() / n**2 + 2 * yy.of_pairs() / m**2 + 4 * xy.of_pairs() / (n * m)
    linear = max(x_part + y_part - 2 * quadratic, 0.0)
    noise = x_part**2 / x_degrees + y_part**2 / y_degrees
    degrees = min((linear + quadratic) ** 2 / noise, MOST_DEGREES) if noise else 1.0
    return KernelDistance(xx.mean + yy.mean - 2 * xy.mean, linear, quadratic, degrees)


def kernel_means(x: Array, y: Array, a: Strata, b: Strata, within: bool = False) -> KernelMeans:
    """In blocks of rows; `within` one set, an image is not compared with itself."""
    members_x, members_y = np.eye(a.max() + 1)[a], np.eye(b.max() + 1)[b]  # (n, strata), (m, strata)
    sums = np.empty((len(x), members_y.shape[1]))
    by_column = np.zeros((members_x.shape[1], len(y)))
    square = 0.0
    for start in range(0, len(x), BLOCK):
        block = polynomial_kernel(x[start : start + BLOCK], y)
        if within:
            np.fill_diagonal(block[:, start:], 0.0)
        sums[start : start + BLOCK] = block @ members_y
        by_column += members_x[start : start + BLOCK].T @ block
        square += float(np.sum(block**2))
    in_x, in_y = members_x.sum(axis=0), members_y.sum(axis=0)
    themselves = members_x if within else np.zeros((len(x), len(in_y)))
    by_row = sums / (in_y - themselves)
    by_column /= (in_x - themselves).T if within else in_x[:, None]
    cells = (members_x.T @ by_row) / in_x[:, None]
    return KernelMeans(by_row, by_column, cells, square / (len(x) * (len(y) - within)), in_x / len(x), in_y / len(y))


def within_variance(values: Array, strata: Strata) -> tuple[float, float]:
    """(variance of what the stratum's mean does not explain, its degrees of freedom given the tails)."""
    counts = np.bincount(strata)
    deviations = values - (np.bincount(strata, weights=values) / counts)[strata]
    variance = float(np.sum(deviations**2)) / (len(values) - len(counts))
    if variance == 0:
        return 0.0, float(len(values))
    kurtosis = float(np.mean(deviations**4)) / variance**2
    return variance, 2 * len(values) / max(kurtosis - 1, 2.0)


def polynomial_kernel(x: Array, y: Array) -> Array:
    """(x.y / d + 1)^3."""
    base = x @ y.T / x.shape[1] + 1
    return base * base * base
