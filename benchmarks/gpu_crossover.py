"""From which size on one network's step is faster than another's at equal model MACs."""

from __future__ import annotations

import math
from itertools import pairwise

from study.bench.config import Network

DEEPEST = 64


def total(network: Network) -> float:
    return network.config.macs().total


def at_equal_cost(name: str, other: Network) -> Network:
    """`name` in the depth that comes nearest to the model MACs of `other`, on the same input."""
    depths = (Network(f"{name}:depth={depth}", other.size) for depth in range(1, DEEPEST + 1))
    return min(depths, key=lambda network: abs(total(network) - total(other)))


def crossing(ratios: dict[int, float]) -> str:
    """Where, along a side in pixels, a ratio of times first falls below 1: a power law between neighbours."""
    known = sorted(ratios.items())
    if not known:
        return "not known"
    for (before, above), (after, below) in pairwise(known):
        if above > 1 >= below:
            share = math.log(above) / math.log(above / below)
            return f"{before * (after / before) ** share:.0f} px"
    if known[0][1] <= 1:
        return f"at {known[0][0]} px or below"
    return f"above {known[-1][0]} px"
