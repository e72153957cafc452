"""The `search:` block of a sweep file: typed and strict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from study.results import is_higher_better
from study.strict import ConfigError, at_least, convert, from_tree, gathered, nearest, to_tree

Direction = Literal["minimize", "maximize"]
SAMPLERS = ("tpe", "gp", "cmaes", "nsga2", "nsga3", "qmc", "grid", "random")
PRUNERS = ("none", "median", "hyperband", "wilcoxon")
MOST_TRIALS = 100_000  # every one of them waits in the storage from the beginning
MOST_SEED = 2**32 - 1  # of numpy's generators
SINGLE = ("cmaes",)  # samplers of one objective


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How points are proposed. What they are is in `axes`."""

    objectives: Any = "val_loss"  # a row's metric, several, or {metric: minimize}
    trials: int = 20  # of each family
    per: str = ""  # an axis: each of its values is a family, with a search and a budget of its own
    sampler: Any = "tpe"  # or {name: tpe, n_startup_trials: 5}
    pruner: Any = "none"
    constraints: Any = field(default_factory=dict)  # {gmacs: 0.01}: at most
    timeout: int = 0  # seconds of one call after which no trial is begun; 0: no end
    storage: str = ""  # any optuna URL; "": a journal in the sweep's folder
    seed: int = 0  # of the sampler
    prior: bool = False  # begin with what the store holds of the space, outside the budget

    def __post_init__(self) -> None:
        at_least("trials", self.trials, 1)
        at_least("timeout", self.timeout, 0)
        at_least("seed", self.seed, 0)
        for name, value, most in (("trials", self.trials, MOST_TRIALS), ("seed", self.seed, MOST_SEED)):
            if value > most:
                raise ValueError(f"{name}={value!r} is not valid: must be at most {most}")
        chosen, _ = self.chosen_sampler
        self._check_objectives(chosen)
        self._check_constraints()
        if self.chosen_pruner[0] != "none" and len(self.directions) > 1:
            raise ValueError(f"pruner={self.pruner!r} is not valid: with several objectives nothing is pruned")

    @property
    def chosen_sampler(self) -> tuple[str, dict[str, Any]]:
        return _chosen("sampler", self.sampler, SAMPLERS)

    @property
    def chosen_pruner(self) -> tuple[str, dict[str, Any]]:
        return _chosen("pruner", self.pruner, PRUNERS)

    @property
    def directions(self) -> dict[str, Direction]:
        """By metric."""
        return _directions(self.objectives)

    @property
    def bounds(self) -> dict[str, float]:
        return {str(key): float(value) for key, value in self.constraints.items()}

    def _check_objectives(self, sampler: str) -> None:
        if len(self.directions) > 1 and sampler in SINGLE:
            raise ValueError(f"sampler={sampler!r} is not valid: it takes one objective, not {len(self.directions)}")

    def _check_constraints(self) -> None:
        if not isinstance(self.constraints, Mapping):
            raise ValueError(f"constraints={self.constraints!r} is not valid: must be a mapping as {{gmacs: 0.01}}")
        for key, bound in self.constraints.items():
            convert(float, bound, f"search.constraints.{key}")


def search_from(given: Any) -> SearchConfig:
    if not isinstance(given, Mapping):
        raise ConfigError(f"search={given!r} is not valid: must be a mapping, such as search: {{trials: 20}}")
    tree = gathered(gathered(given, ["sampler", "pruner"], "name"), ["constraints", "objectives"])
    return from_tree(SearchConfig, {**to_tree(SearchConfig()), **tree}, "search")


def search_tree(config: SearchConfig) -> dict[str, Any]:
    """The tree `search_from` reads back to an equal config."""
    return dict(to_tree(config))


def _chosen(what: str, given: Any, known: Sequence[str]) -> tuple[str, dict[str, Any]]:
    tree = {"name": given} if isinstance(given, str) else given
    if not isinstance(tree, Mapping) or "name" not in tree:
        raise ValueError(f"{what}={given!r} is not valid: must be a name, or a mapping with one, of {', '.join(known)}")
    name = tree["name"]
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{what}={name!r} is not valid{nearest(str(name), list(known))}")
    return str(name), {str(key): value for key, value in tree.items() if key != "name"}


def _directions(given: Any) -> dict[str, Direction]:
    found: dict[str, Direction] = {}
    for entry in given if isinstance(given, list | tuple) else [given]:
        if isinstance(entry, Mapping):
            pairs = list(entry.items())
        elif isinstance(entry, str):
            pairs = [(entry, _usual(entry))]
        else:
            raise ValueError(f"objectives={given!r} is not valid: must be a metric, several, or {{metric: minimize}}")
        for metric, direction in pairs:
            _check_direction(str(metric), direction, found)
            found[str(metric)] = direction
    if not found:
        raise ValueError("objectives=[] is not valid: must name at least one metric, such as val_loss")
    return found


def _check_direction(metric: str, direction: Any, found: Mapping[str, Direction]) -> None:
    if direction not in ("minimize", "maximize"):
        raise ValueError(f"objectives.{metric}={direction!r} is not valid: must be minimize or maximize")
    if metric in found:
        mixed = "in both directions" if found[metric] != direction else "twice"
        raise ValueError(f"objectives: {metric} is given {mixed}")


def _usual(metric: str) -> Direction:
    """The direction in which a metric is better."""
    return "maximize" if is_higher_better(metric) else "minimize"
