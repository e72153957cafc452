"""Optuna's own parts, made from what a sweep file says; whatever they refuse is one line."""

from __future__ import annotations

import inspect
import random
import warnings
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, WilcoxonPruner
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import Trial

from study.search.config import SearchConfig
from study.search.space import Distribution
from study.strict import ConfigError, nearest

SAMPLER_CLASSES: dict[str, Callable[..., BaseSampler]] = {
    "tpe": TPESampler,
    "gp": GPSampler,
    "cmaes": CmaEsSampler,
    "nsga2": NSGAIISampler,
    "nsga3": NSGAIIISampler,
    "qmc": QMCSampler,
    "grid": RandomSampler,  # of which nothing is asked: a grid's trials wait with their values
    "random": RandomSampler,
}
PRUNER_CLASSES: dict[str, Callable[..., BasePruner]] = {
    "none": NopPruner,
    "median": MedianPruner,
    "hyperband": HyperbandPruner,
    "wilcoxon": WilcoxonPruner,
}
PLAIN: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "None": (type(None),),
}
CODE = ("Callable", "Base", "FrozenTrial")
OURS = ("seed", "constraints_func")  # given by the search itself

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.simplefilter("ignore", ExperimentalWarning)


def make_sampler(config: SearchConfig, number: int) -> BaseSampler:
    """The sampler of one trial. Seeded by its number, many processes draw no point twice, and the same again."""
    name, options = config.chosen_sampler
    kind = SAMPLER_CLASSES[name]
    _check_options("sampler", name, kind, options)
    given = dict(options)
    if name == "cmaes":
        given.setdefault("warn_independent_sampling", False)
    if name == "qmc":  # its points are one sequence, counted in the storage: the same seed for every trial of it
        given = {"scramble": True, "warn_asynchronous_seeding": False, **given}
    seed = config.seed if name == "qmc" else config.seed * 1_000_003 + number
    return _made("sampler", name, options, lambda: kind(**given, seed=seed % 2**32))


def make_pruner(config: SearchConfig) -> BasePruner:
    name, options = config.chosen_pruner
    kind = PRUNER_CLASSES[name]
    _check_options("pruner", name, kind, options)
    return _made("pruner", name, options, lambda: kind(**options))


def to_optuna(distribution: Distribution) -> BaseDistribution:
    given = distribution.arguments
    if distribution.kind == "choice":
        return CategoricalDistribution(given)
    if distribution.kind == "uniform":
        return FloatDistribution(given[0], given[1])
    if distribution.kind == "loguniform":
        return FloatDistribution(given[0], given[1], log=True)
    if distribution.kind == "logrange":
        return IntDistribution(given[0], given[1], log=True)
    low, high = distribution.ends
    return IntDistribution(low, high, step=given[2] if len(given) == 3 else 1)


def suggested(trial: Trial, key: str, distribution: Distribution) -> Any:
    """The trial's value on this axis."""
    where = to_optuna(distribution)
    if isinstance(where, CategoricalDistribution):
        return trial.suggest_categorical(key, where.choices)
    if isinstance(where, IntDistribution):
        return trial.suggest_int(key, where.low, where.high, step=where.step, log=where.log)
    assert isinstance(where, FloatDistribution)
    return trial.suggest_float(key, where.low, where.high, log=where.log)


def grid(space: Mapping[str, Distribution], seed: int) -> list[dict[str, Any]]:
    """Every point of a countable space, shuffled: a budget may not reach them all."""
    values = [grid_values(key, distribution) for key, distribution in space.items()]
    points = [dict(zip(space, point, strict=True)) for point in product(*values)]
    random.Random(seed).shuffle(points)
    return points


def grid_values(key: str, distribution: Distribution) -> list[Any]:
    """All values of something countable."""
    if distribution.kind in ("uniform", "loguniform"):
        raise ConfigError(f"axis {key}: sampler=grid needs a list or a range, not {distribution}")
    if distribution.kind == "choice":
        return list(distribution.arguments)
    low, high, *step = distribution.arguments
    return list(range(low, high + 1, *step))


def _check_options(what: str, name: str, kind: Callable[..., Any], options: Mapping[str, Any]) -> None:
    known = [option for option in inspect.signature(kind).parameters if option not in OURS]
    for option in options:
        if option not in known:
            hint = nearest(option, known) if known else "; it has none"
            raise ConfigError(f"search.{what}: {name} has no option {option}{hint}")
        _check_kind(f"search.{what}.{option}", options[option], kind, option)


def _check_kind(where: str, value: Any, kind: Callable[..., Any], option: str) -> None:
    """Where optuna annotates a plain type it trusts that it is given one, and fails only once trials are done."""
    annotation = inspect.signature(kind).parameters[option].annotation
    words = {word.strip() for word in str(getattr(annotation, "__name__", annotation)).split("|")}
    if not words <= PLAIN.keys():
        if value is not None and any(word in str(annotation) for word in CODE):
            raise ConfigError(f"{where}={value!r} is not valid: optuna wants code there, which a file cannot hold")
        return
    named = " or ".join(word for word in sorted(words) if word != "None")
    fits = any(isinstance(value, PLAIN[word]) and isinstance(value, bool) == (word == "bool") for word in words)
    if not fits:
        raise ConfigError(f"{where}={value!r} is not valid: must be {named}")


def _made(what: str, name: str, options: Mapping[str, Any], make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (ValueError, TypeError, ImportError, AssertionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"search.{what}={name} is not valid: {reason}{_told(options)}") from error


def _told(options: Mapping[str, Any]) -> str:
    return f" [{', '.join(f'{option}={value!r}' for option, value in options.items())}]" if options else ""
