"""Precision, recall, density and coverage against torch-fidelity and against loops that follow the papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_fidelity.metric_prc import calculate_precision_recall_full

from study.score import manifold as module
from study.score.manifold import Manifold, manifold


def means(found: Manifold) -> tuple[float, ...]:
    return tuple(float(each.mean()) for each in (found.precision, found.recall, found.density, found.coverage))


def test_equals_torch_fidelity_and_is_not_swapped(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 64)
    x, y = rng.standard_normal((150, 6)) * 0.7, rng.standard_normal((120, 6))
    theirs = calculate_precision_recall_full(torch.from_numpy(x), torch.from_numpy(y), 3)
    precision, recall, *_ = means(manifold(x, y))
    assert (precision, recall) == pytest.approx(theirs)
    assert precision > recall + 0.1


def test_equals_loops(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((30, 3)), rng.standard_normal((40, 3)) + 0.5

    def radius(points: np.ndarray, i: int, k: int) -> float:
        return sorted(np.linalg.norm(points[i] - other) for other in points)[k]

    def inside(point: np.ndarray, points: np.ndarray, i: int, k: int) -> bool:
        return bool(np.linalg.norm(point - points[i]) <= radius(points, i, k))

    precision = np.mean([any(inside(a, y, j, 3) for j in range(40)) for a in x])
    recall = np.mean([any(inside(b, x, i, 3) for i in range(30)) for b in y])
    density = np.mean([sum(inside(a, y, j, 5) for j in range(40)) / 5 for a in x])
    coverage = np.mean([any(inside(a, y, j, 5) for a in x) for j in range(40)])
    assert means(manifold(x, y)) == pytest.approx((precision, recall, density, coverage))


def test_collapsed_and_inventing_generators(rng: np.random.Generator) -> None:
    """Four real modes. One generator keeps to one of them, the other adds four of its own."""
    corners = 10 * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
    others = 10 * np.array([[1, 1], [-1, 1], [1, -1], [-1, -1]])

    def around(centres: np.ndarray) -> np.ndarray:
        return np.repeat(centres, 200 // len(centres), axis=0) + rng.standard_normal((200, 2))

    real = around(corners)
    collapsed = means(manifold(around(corners[:1]), real))
    inventing = means(manifold(around(np.concatenate([corners, others])), real))
    assert collapsed[0] > 0.9
    assert collapsed[1] < 0.35
    assert collapsed[3] < 0.35
    assert inventing[1] > 0.85
    assert inventing[0] == pytest.approx(0.5, abs=0.1)
    assert inventing[2] == pytest.approx(0.5, abs=0.15)


def test_too_few_images_are_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="images"):
        manifold(rng.standard_normal((5, 2)), rng.standard_normal((9, 2)))
