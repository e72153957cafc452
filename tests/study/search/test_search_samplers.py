"""Proposals on closed-form objectives: better than chance where they should be, and never twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from numpy.typing import NDArray
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from study.search.book import FAILURE, Book
from study.search.config import search_from
from study.search.space import Distribution, choices, parse_distribution
from study.strict import ConfigError
from tests.study.search.fake_objectives import bowl

SPACE = {"rate": parse_distribution("loguniform(1e-4, 1e-1)"), "decay": parse_distribution("uniform(0, 1)")}
Objective = Callable[[Mapping[str, float]], list[float]]


def book(folder: Path, space: Mapping[str, Distribution] = SPACE, **search: object) -> Book:
    made = Book(InMemoryStorage(), "s", space, search_from(search), folder)
    made.fill()
    return made


def searched(folder: Path, objective: Objective, **search: object) -> NDArray[np.float64]:
    """(trials, objectives), in the order of their numbers."""
    made = book(folder, **search)
    while (claim := made.claim()) is not None:
        assert made.tell(claim, objective(claim.values))
    return np.array([trial.values for trial in made.trials()])


def single(values: Mapping[str, float]) -> list[float]:
    return [bowl(values["rate"], values["decay"])]


def double(values: Mapping[str, float]) -> list[float]:
    """Schaffer's first problem, lengthened: the front has decay = 0 and the first value in [0, 1]."""
    x = np.log10(values["rate"] / 1e-3)
    return [x**2 + values["decay"], (x - 1) ** 2 + values["decay"]]


def hypervolume(values: NDArray[np.float64], reference: float = 3.0) -> float:
    """The area that a set of pairs dominates, by its staircase."""
    area, lowest = 0.0, reference
    for first, second in sorted(map(tuple, values)):
        if first < reference and second < lowest:
            area += (reference - first) * (lowest - second)
            lowest = second
    return area


def test_the_hypervolume_is_that_of_rectangles() -> None:
    assert hypervolume(np.array([[1.0, 2.0], [2.0, 1.0], [2.5, 2.5]])) == pytest.approx(2 + 1)
    assert hypervolume(np.array([[0.0, 0.0]])) == 9
    assert hypervolume(np.array([[4.0, 0.0]])) == 0


def test_tpe_beats_chance_on_the_median_of_twenty_seeds(tmp_path: Path) -> None:
    best = {
        sampler: [
            searched(tmp_path / f"{sampler}{seed}", single, sampler=sampler, seed=seed, trials=40).min()
            for seed in range(20)
        ]
        for sampler in ("tpe", "random")
    }
    assert median(best["tpe"]) < median(best["random"]) / 2


def test_nsga2s_front_dominates_more_than_chances(tmp_path: Path) -> None:
    def area(name: str, seed: int) -> float:
        sampler = {"name": "nsga2", "population_size": 10} if name == "nsga2" else name
        aims = ["first", "second"]
        return hypervolume(
            searched(tmp_path / f"{name}{seed}", double, sampler=sampler, seed=seed, trials=80, objectives=aims)
        )

    found = [(area("nsga2", seed), area("random", seed)) for seed in range(5)]
    assert sum(clever > chance for clever, chance in found) >= 4
    assert median(clever for clever, _ in found) > median(chance for _, chance in found) + 0.1


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "cmaes", "nsga2", "nsga3", "gp"])
def test_every_sampler_fills_its_budget_with_distinct_points_of_the_space(tmp_path: Path, sampler: str) -> None:
    made = book(tmp_path, sampler=sampler, trials=13)
    points = []
    while (claim := made.claim()) is not None:
        assert all(SPACE[key].contains(value) for key, value in claim.values.items())
        points.append(tuple(claim.values.values()))
        made.tell(claim, single(claim.values))
    assert len(set(points)) == len(points) == 13
    assert [trial.number for trial in made.trials([TrialState.COMPLETE])] == list(range(13))


def test_a_grid_is_done_once_however_large_the_budget(tmp_path: Path) -> None:
    space = {"decay": choices([0.0, 0.5]), "rate": choices([1e-3, 1e-2]), "M": parse_distribution("range(1, 3)")}
    made = book(tmp_path, space, sampler="grid", trials=100)
    points = []
    while (claim := made.claim()) is not None:
        points.append(tuple(claim.values.values()))
        made.tell(claim, single(claim.values))
    assert len(points) == len(set(points)) == 12
    with pytest.raises(ConfigError, match=r"axis rate: sampler=grid needs a list or a range, not loguniform"):
        book(tmp_path, sampler="grid")


def test_points_depend_on_the_trials_number_and_not_on_who_asks(tmp_path: Path) -> None:
    alone, together = book(tmp_path / "a", sampler="random", trials=8), book(tmp_path / "b", sampler="random", trials=8)
    one = []
    while (claim := alone.claim()) is not None:
        one.append(claim.values)
        alone.tell(claim, single(claim.values))
    claims = []
    while (claim := together.claim()) is not None:
        claims.append(claim)
    assert [claim.values for claim in claims] == one
    for claim in reversed(claims):
        together.tell(claim, single(claim.values))


def test_points_outside_the_constraints_are_avoided(tmp_path: Path) -> None:
    """The best loss lies where the decay is above its bound."""

    def within(folder: Path, tell: bool) -> int:
        made = book(folder, sampler={"name": "tpe", "n_startup_trials": 8}, trials=40, constraints={"gmacs": 0.1})
        decays = []
        while (claim := made.claim()) is not None:
            decays.append(claim.values["decay"])
            made.tell(claim, single(claim.values), violations={"gmacs": decays[-1] - 0.1} if tell else {})
        return sum(decay <= 0.1 for decay in decays[20:])

    assert within(tmp_path / "told", tell=True) >= 2 * within(tmp_path / "untold", tell=False) + 2


@pytest.mark.parametrize(
    ("search", "complaint"),
    [
        (
            {"sampler": {"name": "tpe", "n_startup": 3}},
            "search.sampler: tpe has no option n_startup: did you mean",
        ),
        ({"pruner": {"name": "median", "percentile": 3}}, "search.pruner: median has no option percentile"),
        ({"sampler": {"name": "nsga2", "population_size": 1}}, "search.sampler=nsga2 is not valid"),
    ],
)
def test_unknown_options_are_refused(tmp_path: Path, search: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        book(tmp_path, **search)


def test_a_trial_that_gave_a_value_after_all_is_not_repeated(tmp_path: Path) -> None:
    """Two processes at one trial: one noted a failure, the other its value."""
    made = book(tmp_path, trials=2)
    made.fill()
    for value in (0.5, None):
        claim = made.claim()
        assert claim is not None
        claim.trial.set_user_attr(FAILURE, "bug")
        made.tell(claim, None if value is None else [value], ignored=True)
    made.repeat(["bug"])
    assert made.waiting == 1
