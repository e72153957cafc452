"""Kernel distance: the unbiased squared MMD with KID's cubic kernel (Binkowski et al. 2018), and its interval.

All pairs are used, in float64. In Inception features this estimates the same number as torch-fidelity's
mean over subsets, with the least variance that the images allow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.denoiser import require
from study.stats import Interval, normal_quantile

Array = NDArray[np.float64]

BLOCK = 2048  # rows of a kernel matrix held at once


@dataclass(frozen=True)
class KernelDistance:
    value: float  # may be slightly negative: it is unbiased
    sd: float  # over draws of both sets
    sizes: tuple[int, int]

    def interval(self) -> Interval:
        """95 %, for the distance between the two distributions."""
        reach = normal_quantile() * self.sd
        return self.value - reach, self.value + reach


@dataclass(frozen=True)
class KernelSums:
    """One kernel matrix: means of its rows and of its columns, and the mean of its squares."""

    rows: Array
    columns: Array
    square: float

    @property
    def mean(self) -> float:
        return float(self.rows.mean())

    def second_order(self) -> float:
        """Variance of what rows and columns do not explain: the doubly centred kernel's."""
        explained = self.rows.var() + self.columns.var() + self.mean**2
        return max(self.square - float(explained), 0.0)


def kernel_distance(samples: NDArray[np.floating], reference: NDArray[np.floating]) -> KernelDistance:
    """Squared MMD and its standard deviation.

    The row means' variance counts the noise of pairs twice (Hoeffding); what pairs contribute is taken off once.
    """
    require(samples.shape[1] == reference.shape[1], "features.d", samples.shape[1], f"{reference.shape[1]}")
    n, m = len(samples), len(reference)
    require(min(n, m) >= 2, "features.n", min(n, m), "at least 2 images")
    x, y = samples.astype(np.float64), reference.astype(np.float64)
    xx, yy, xy = kernel_sums(x, x, within=True), kernel_sums(y, y, within=True), kernel_sums(x, y)
    first = 4 * float((xx.rows - xy.rows).var(ddof=1)) / n + 4 * float((yy.rows - xy.columns).var(ddof=1)) / m
    pairs = 2 * xx.second_order() / n**2 + 2 * yy.second_order() / m**2 + 4 * xy.second_order() / (n * m)
    variance = max(first - pairs, first / 2)
    return KernelDistance(xx.mean + yy.mean - 2 * xy.mean, variance**0.5, (n, m))


def kernel_sums(x: Array, y: Array, within: bool = False) -> KernelSums:
    """In blocks of rows; `within` one set, an image is not compared with itself."""
    partners = len(y) - within
    rows = np.empty(len(x))
    columns = np.zeros(len(y))
    square = 0.0
    for start in range(0, len(x), BLOCK):
        block = polynomial_kernel(x[start : start + BLOCK], y)
        if within:
            np.fill_diagonal(block[:, start:], 0.0)
        rows[start : start + BLOCK] = block.sum(axis=1) / partners
        columns += block.sum(axis=0)
        square += float(np.sum(block**2))
    return KernelSums(rows, columns / (len(x) - within), square / (len(x) * partners))


def polynomial_kernel(x: Array, y: Array) -> Array:
    """(x.y / d + 1)^3."""
    base = x @ y.T / x.shape[1] + 1
    return base * base * base
