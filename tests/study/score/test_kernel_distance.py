"""The kernel distance against its definition, pair by pair, and against torch-fidelity's KID."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from study.score import kernel_distance as module
from study.score.kernel_distance import kernel_distance, kernel_reference
from study.score.strata import strata_of


def test_equals_its_definition(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 5)  # several blocks, the last one partial
    x, y = rng.standard_normal((13, 4)), rng.standard_normal((11, 4)) + 0.3

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 4 + 1) ** 3)

    within_x = np.mean([k(a, b) for a, b in itertools.permutations(x, 2)])
    within_y = np.mean([k(a, b) for a, b in itertools.permutations(y, 2)])
    across = np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(x, kernel_reference(y)).value == pytest.approx(within_x + within_y - 2 * across, rel=1e-12)


def test_equals_torch_fidelity_on_all_images(rng: np.random.Generator) -> None:
    """Their estimate is a mean over subsets, in float32: with one subset of everything it is the same number."""
    x, y = rng.standard_normal((400, 32)), rng.standard_normal((400, 32)) * 1.1
    given = [torch.from_numpy(each) for each in (x, y)]
    theirs = kid_features_to_metric(*given, kid_subsets=1, kid_subset_size=400, verbose=False)
    ours = kernel_distance(x, kernel_reference(y))
    assert ours.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-10)


def test_agrees_with_torch_fidelity_on_subsets(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((1000, 16)), rng.standard_normal((900, 16)) * 1.2
    given = [torch.from_numpy(each) for each in (x, y)]
    theirs = kid_features_to_metric(*given, kid_subsets=100, kid_subset_size=300, verbose=False)
    error = theirs["kernel_inception_distance_std"] / 100**0.5
    ours = kernel_distance(x, kernel_reference(y)).value
    assert abs(ours - theirs["kernel_inception_distance_mean"]) < 4 * error


@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_sd_is_the_spread_over_draws(scale: float) -> None:
    """Also where both sets are alike and only pairs contribute, which counts them twice if done carelessly."""
    found = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        reference = kernel_reference(rng.standard_normal((80, 6)))
        found.append(kernel_distance(rng.standard_normal((100, 6)) * scale, reference))
    spread = np.std([one.value for one in found])
    assert np.sqrt(np.mean([one.sd**2 for one in found])) == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize("balanced", [True, False])
def test_unbiased_for_balanced_classes(balanced: bool) -> None:
    """Equal counts of well separated classes: taken as independent draws, equal distributions look too close."""
    values = []
    labels = torch.arange(60) % 3
    strata = strata_of(labels, 60) if balanced else None
    for seed in range(300):
        rng = np.random.default_rng(seed)
        centre = 2 * np.eye(3)[labels.numpy()]
        x, y = (centre + 0.3 * rng.standard_normal((60, 3)) for _ in range(2))
        values.append(kernel_distance(x, kernel_reference(y, strata), strata).value)
    error = np.std(values) / len(values) ** 0.5
    assert (abs(np.mean(values)) < 3 * error) == balanced


def test_too_few_and_other_features_are_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(rng.standard_normal((1, 3)), kernel_reference(rng.standard_normal((9, 3))))
    with pytest.raises(ValueError, match=r"features\.d"):
        kernel_distance(rng.standard_normal((9, 4)), kernel_reference(rng.standard_normal((9, 3))))
