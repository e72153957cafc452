"""Sliced Wasserstein against scipy's one-dimensional transport and a shift's closed form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from study.score.sliced import directions, sliced_wasserstein, wasserstein_squared


@pytest.mark.parametrize(("n", "m"), [(12, 12), (12, 8), (9, 4)])
def test_equals_optimal_assignment(rng: np.random.Generator, n: int, m: int) -> None:
    """Each image repeated until both sets are of one size, then assigned at the least cost."""
    x, y = rng.standard_normal(n), rng.standard_normal(m)
    whole = np.lcm(n, m)
    cost = (np.repeat(x, whole // n)[:, None] - np.repeat(y, whole // m)) ** 2
    expected = cost[linear_sum_assignment(cost)].mean()
    assert wasserstein_squared(x[:, None], y[:, None])[0] == pytest.approx(expected, rel=1e-10)


def test_a_shift_moves_every_projection_by_its_share(rng: np.random.Generator) -> None:
    along = directions(5, rng, 64)
    x, shift = rng.standard_normal((50, 5)), np.array([1.0, 0, 2, 0, 0])
    expected = np.sqrt(((shift @ along) ** 2).mean())
    assert sliced_wasserstein(x @ along, (x + shift) @ along) == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(np.linalg.norm(along, axis=0), 1)
