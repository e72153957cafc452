"""What pooled intervals must add: against scipy's tests, and by how often the warnings are false."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from study.answer import remarks
from study.caveats import pooling, starting_noises
from study.comparison import Metric, Study, difference, own_difference, study_of
from study.stats import bartlett
from tests.study import test_comparison as tables

# val_loss_bin0 of five seeds: two points that scatter little, and two that scatter much and are compared.
UNEQUAL = np.array(
    [
        [0.571, 0.573, 0.577, 0.570, 0.576],
        [0.579, 0.573, 0.590, 0.581, 0.603],
        [0.707, 0.708, 0.710, 0.706, 0.709],
        [0.650, 0.651, 0.652, 0.649, 0.651],
    ]
)


def test_spreads_are_held_to_bartletts_test() -> None:
    found = bartlett(UNEQUAL.tolist())
    assert found is not None
    assert found.p == pytest.approx(scipy.stats.bartlett(*UNEQUAL).pvalue)
    assert (found.least, found.most) == pytest.approx((UNEQUAL[3].std(ddof=1), UNEQUAL[1].std(ddof=1)))


def test_scores_that_tie_are_not_judged() -> None:
    assert bartlett([[0.1 + 0.2, 0.3], [1.0, 2.0], [1.0, 3.0]]) is None


def test_a_points_own_interval_is_the_paired_t_test_whatever_the_others_do() -> None:
    study, metric = tables.study_of(UNEQUAL)
    found = own_difference(study, study.cells[1], metric)
    expected = scipy.stats.ttest_rel(UNEQUAL[1], UNEQUAL[0]).confidence_interval(0.95)
    assert found is not None
    assert found.reach is not None
    assert (found.mean - found.reach, found.mean + found.reach) == pytest.approx((expected.low, expected.high))


def test_a_verdict_that_rests_on_pooling_says_so() -> None:
    study, metric = tables.study_of(UNEQUAL)
    low, high = scipy.stats.ttest_rel(UNEQUAL[1], UNEQUAL[0]).confidence_interval(0.95)
    assert low < 0 < high
    p = scipy.stats.bartlett(*UNEQUAL).pvalue
    assert pooling(study, metric) == [
        f"m: spreads differ from point to point (Bartlett p {p:.2g}; 0.0011 to 0.012): pooled reaches are too narrow "
        f"for the noisier; from its own pairs alone not told apart: c1 (±{(high - low) / 2:.2g})."
    ]
    assert pooling(study, metric)[0] in remarks(study, [metric])


def test_so_does_one_that_pooling_hides() -> None:
    values = np.array([[1.0, 1.1, 1.2], [1.1, 1.2, 1.301], [5.0, 9.0, 1.0]])
    study, metric = tables.study_of(values)
    (line,) = pooling(study, metric)
    assert "from its own pairs alone told apart: c1 (±" in line
    assert "c2" not in line


def test_many_such_points_are_counted() -> None:
    quiet = [[0.0, 0.0, 0.001], *([0.1, 0.101, 0.1 + 0.001 * k] for k in range(1, 7)), [0.5, 4.0, -4.0]]
    (line,) = pooling(*tables.study_of(np.array(quiet)))
    assert line.count("±") == 4
    assert line.endswith(" and 2 more.")


def test_two_points_have_no_spread_but_their_own_and_one_run_has_none() -> None:
    generator = np.random.default_rng(0)
    assert pooling(*tables.study_of(generator.normal(size=(2, 5)) * [[0.01], [1.0]])) == []
    assert pooling(*tables.study_of(generator.normal(size=(5, 1)))) == []


def test_equal_spreads_are_called_unequal_as_seldom_as_promised() -> None:
    generator, total = np.random.default_rng(1), 400
    false = sum(
        any("spreads differ" in line for line in pooling(*tables.study_of(generator.normal(size=(4, 5)))))
        for _ in range(total)
    )
    assert scipy.stats.binomtest(false, total, 0.05).pvalue > 0.001


def test_where_spreads_differ_own_pairs_cover_and_pooled_reaches_do_not() -> None:
    """The noisiest of six points against a quiet baseline: what the remark warns of, in simulated studies."""
    generator, total = np.random.default_rng(2), 300
    spreads = np.array([[1.0], [4.0], [1.0], [1.0], [1.0], [1.0]])
    pooled = own = 0
    for _ in range(total):
        study, metric = tables.study_of(generator.normal(size=(6, 5)) * spreads)
        wide, narrow = own_difference(study, study.cells[1], metric), difference(study, study.cells[1], metric)
        assert wide is not None
        assert narrow is not None
        own, pooled = own + (not wide.beyond_noise), pooled + (not narrow.beyond_noise)
    assert scipy.stats.binomtest(own, total, 0.95).pvalue > 0.001
    assert pooled / total < 0.9


def scored(values: np.ndarray, same_noises: bool = True) -> tuple[Study, Metric]:
    study, metric = tables.study_of(values)
    score = replace(metric, name="fd_digits8@500")
    return replace(study, metrics=(score,), same_noises=same_noises), score


def test_scores_of_samples_name_their_one_set_of_noises() -> None:
    study, score = scored(UNEQUAL)
    (line,) = starting_noises(study, [score, tables.study_of(UNEQUAL)[1]])
    assert line.startswith("fd_digits8@500: intervals are over training seeds with one set of starting noises")
    assert line in remarks(study, [score])


def test_where_noises_vary_or_nothing_is_sampled_or_no_interval_is_given_nothing_is_said_of_them() -> None:
    varied, score = scored(UNEQUAL, same_noises=False)
    assert starting_noises(varied, [score]) == []
    study, metric = tables.study_of(UNEQUAL)
    assert starting_noises(replace(study, same_noises=True), [metric]) == []
    single, score = scored(UNEQUAL[:, :1])
    assert starting_noises(single, [score]) == []


@pytest.mark.parametrize("varied", [False, True])
def test_noises_are_the_same_where_no_run_has_another_seed_of_them(varied: bool) -> None:
    points = [{"run": f"r{seed}", "values": {"seed": seed}, "sizes": ""} for seed in (0, 1)]
    plan = {"sweep": "s", "question": "", "axes": {"seed": [0, 1]}, "together": [["seed"]], "baseline": {}}
    lines = [
        {"run": f"r{seed}", "metric": "fd@5", "protocol": "p", "value": 1.0, "sample.seed": str(seed)}
        for seed in (0, 1)
    ]
    rows = pd.DataFrame(lines) if varied else pd.DataFrame(lines).drop(columns="sample.seed")
    assert study_of({**plan, "points": points}, rows).same_noises is not varied


def test_the_floor_of_another_count_names_it() -> None:
    study, score = scored(UNEQUAL)
    assert study.floor(score) is None
    real = {name: Metric(f"fd_digits8@{name}.real", "p", {"r": 0.02}, is_cost=False) for name in ("297", "500")}
    other = replace(real["297"], name="fd_inception@297.real")
    for metrics, label in (([other, real["297"]], "real images (297)"), (real.values(), "real images")):
        floor = replace(study, metrics=(score, *metrics)).floor(score)
        assert floor is not None
        assert (floor.label, floor.value) == (label, 0.02)


def test_noises_that_move_with_the_seed_make_no_other_point() -> None:
    runs = [(ratio, seed) for ratio in (1, 2) for seed in (0, 1)]
    points = [
        {"run": f"{m}{s}", "values": {"backbone.M": m, "seed": s, "sample.seed": s}, "sizes": ""} for m, s in runs
    ]
    axes = {"backbone.M": [1, 2], "seed": [0, 1], "sample.seed": [0, 1]}
    together = [["backbone.M"], ["seed", "sample.seed"]]
    plan = {"sweep": "s", "question": "", "axes": axes, "together": together, "baseline": {"backbone.M": 1}}
    lines = [
        {"run": f"{m}{s}", "metric": "fd@5", "protocol": "p", "value": m + 0.1 * s, "sample.seed": s} for m, s in runs
    ]
    study = study_of({**plan, "points": points}, pd.DataFrame(lines))
    assert [(cell.label, len(cell.runs)) for cell in study.cells] == [("M=1", 2), ("M=2", 2)]
    found = difference(study, study.cells[1], study.metrics[0])
    assert found is not None
    assert found.mean == pytest.approx(1)
    assert found.n == 2
    assert starting_noises(study, study.metrics) == []
