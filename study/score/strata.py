"""Classes that a set of images holds in fixed proportions, not by chance.

Embedded data sets and conditional samples have as many images of one class as of another. Their class
proportions then carry no noise, and a bias correction or an interval that assumed some would be wrong.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import scipy.stats
from numpy.typing import NDArray
from torch import Tensor

Strata: TypeAlias = NDArray[np.int64]
"""(N,) the stratum of each image; all zero: drawn independently"""

BY_CHANCE = 1e-3  # counts as even as this, or more, are no accident


def independent(n: int) -> Strata:
    return np.zeros(n, dtype=np.int64)


def strata_of(labels: Tensor | None, n: int) -> Strata:
    """The labels, 0.., if their counts are more even than independent draws would be; else one stratum."""
    if labels is None:
        return independent(n)
    _, strata, counts = np.unique(labels.numpy(), return_inverse=True, return_counts=True)
    expected = n / len(counts)
    unevenness = float(((counts - expected) ** 2).sum() / expected)
    even = len(counts) > 1 and counts.min() >= 4 and scipy.stats.chi2.cdf(unevenness, len(counts) - 1) < BY_CHANCE
    return strata.astype(np.int64) if even else independent(n)
