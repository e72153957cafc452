"""What may stand in place of an axis's values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution

from study.search.optuna_parts import grid_values, to_optuna
from study.search.space import Distribution, choices, parse_distribution
from study.strict import ConfigError

GOOD = {
    "loguniform(1e-4, 5e-3)": FloatDistribution(1e-4, 5e-3, log=True),
    "uniform(-1, 2.5)": FloatDistribution(-1, 2.5),
    "range(1, 8)": IntDistribution(1, 8),
    "range(32, 100, 32)": IntDistribution(32, 96, step=32),
    "logrange(1, 64)": IntDistribution(1, 64, log=True),
}
BAD = {
    "0.1": "must be a list, or a distribution",
    "loguniform 1 2": "must be a list, or a distribution",
    "logunif(1, 2)": "did you mean loguniform",
    "uniform(1)": "must have a low and a high end",
    "uniform(1, 2, 3)": "must have a low and a high end",
    "uniform(a, 2)": "'a' must be a number",
    "uniform(2, 1)": "is empty: its low end must be below",
    "uniform(1, 1)": "is empty",
    "uniform(0, inf)": "must be a number",
    "loguniform(0, 1)": "needs ends above 0",
    "range(1.5, 3)": "1.5 must be an integer",
    "range(1, 9, 0)": "its step must be 1 or more",
    "choice()": "at least one value",
    "choice(a, b, a)": "there twice",
}


@pytest.mark.parametrize("text", GOOD)
def test_distributions_are_optunas(text: str) -> None:
    assert to_optuna(parse_distribution(text)) == GOOD[text]


@pytest.mark.parametrize("text", BAD)
def test_bad_ones_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=BAD[text]) as refused:
        parse_distribution(text)
    assert len(str(refused.value).splitlines()) == 1


def test_choices_keep_their_kinds() -> None:
    found = parse_distribution("choice(adam, 'sgd', 1, 0.5, true)")
    assert found == choices(["adam", "sgd", 1, 0.5, True])
    assert found.contains(True)
    assert not choices([1]).contains(True)
    with pytest.raises(ConfigError, match="must be a number, a text"):
        choices([[1, 2]])


@given(st.integers(-50, 50), st.integers(1, 60), st.integers(1, 7))
def test_a_range_contains_what_it_lists_and_both_its_ends(low: int, width: int, step: int) -> None:
    found = Distribution("range", (low, low + width, step))
    listed = grid_values("x", found)
    assert set(found.ends) <= set(listed)
    assert [value for value in range(low - 3, low + width + 4) if found.contains(value)] == listed
    assert to_optuna(found) == IntDistribution(listed[0], listed[-1], step=step)


@given(st.floats(1e-6, 1), st.floats(1.01, 100))
def test_what_is_written_is_read_back(low: float, factor: float) -> None:
    found = Distribution("loguniform", (float(f"{low:.6g}"), float(f"{low * factor:.6g}") + 1e-3))
    assert parse_distribution(str(found)) == found
