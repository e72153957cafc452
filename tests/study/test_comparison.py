"""What counts as noise: against a closed form, and by how often the intervals are right."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from study.comparison import Cell, Metric, Study, difference, differences, mean_of, spread


def study_of(values: np.ndarray) -> tuple[Study, Metric]:
    """values (cells, seeds); the first cell is the baseline; NaN: missing."""
    cells = tuple(
        Cell(f"c{i}", {"x": i}, {f"s{j}": f"{i}/{j}" for j in range(values.shape[1])}) for i in range(len(values))
    )
    seen = {f"{i}/{j}": v for (i, j), v in np.ndenumerate(values) if not math.isnan(v)}
    metric = Metric("m", "p", seen, is_cost=False)
    return Study("s", "", cells, {cell.label: "c0" for cell in cells}, (metric,)), metric


def test_the_spread_is_the_residual_of_a_two_way_table() -> None:
    values = np.random.default_rng(0).normal(size=(4, 3))
    study, metric = study_of(values)
    residual = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    deviation, freedom = spread(study.cells, metric)
    assert freedom == 3 * 2
    assert deviation == pytest.approx(math.sqrt((residual**2).sum() / 6))


def test_a_difference_of_two_cells_is_the_paired_t_test() -> None:
    values = np.random.default_rng(1).normal(size=(2, 5))
    study, metric = study_of(values)
    found = difference(study, study.cells[1], metric)
    expected = scipy.stats.ttest_rel(values[1], values[0]).confidence_interval(0.95)
    assert found is not None
    assert found.reach is not None
    assert (found.mean - found.reach, found.mean + found.reach) == pytest.approx((expected.low, expected.high))


def test_what_a_seed_does_to_all_alike_is_no_noise() -> None:
    effect, seeds = np.array([[0.0], [1.0], [2.0]]), np.array([[0.0, 100.0]])
    study, metric = study_of(effect + seeds + np.random.default_rng(2).normal(size=(3, 2)) * 1e-3)
    found = difference(study, study.cells[2], metric)
    assert found is not None
    assert found.beyond_noise
    wide = mean_of(study.cells[2], metric)
    assert wide is not None
    assert wide.reach is not None
    assert wide.reach > 100


def test_missing_runs_are_left_out_and_one_seed_has_no_interval() -> None:
    values = np.array([[1.0, 2.0, np.nan], [2.0, np.nan, 4.0], [np.nan, np.nan, np.nan]])
    study, metric = study_of(values)
    found = difference(study, study.cells[1], metric)
    assert found is not None
    assert (found.mean, found.n) == (1.0, 1)
    assert mean_of(study.cells[2], metric) is None
    single, metric = study_of(np.array([[1.0], [2.0]]))
    found = difference(single, single.cells[1], metric)
    assert found is not None
    assert found.reach is None
    assert not found.beyond_noise


def test_no_effect_is_found_in_noise_as_often_as_promised() -> None:
    generator, false, total = np.random.default_rng(3), 0, 400
    for _ in range(total):
        study, metric = study_of(generator.normal(size=(3, 2)) + generator.normal(size=(1, 2)) * 5)
        found = difference(study, study.cells[1], metric)
        assert found is not None
        false += found.beyond_noise
    assert scipy.stats.binomtest(false, total, 0.05).pvalue > 0.001


def test_an_unbalanced_table_has_the_spread_of_the_full_regression() -> None:
    random = np.random.default_rng(3)
    values = np.where(random.random((6, 4)) < 0.7, random.normal(size=(6, 4)), np.nan)
    study, metric = study_of(values)
    lines = [(i, j) for (i, j), value in np.ndenumerate(values) if not math.isnan(value)]
    design = np.zeros((len(lines), 10))
    for line, (i, j) in enumerate(lines):
        design[line, [i, 6 + j]] = 1
    y = np.array([values[place] for place in lines])
    rest = y - design @ np.linalg.pinv(design) @ y
    freedom = len(lines) - int(np.linalg.matrix_rank(design))
    assert spread(study.cells, metric) == (pytest.approx(math.sqrt(rest @ rest / freedom)), freedom)
    every = differences(study, metric)
    assert every == {cell.label: difference(study, cell, metric) for cell in study.cells}
