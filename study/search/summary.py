"""A search's trials as a plan that the analysis reads, as lines of a table, and as what they found."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.exceptions import ExperimentalWarning
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from study.atomic import write_text
from study.plan import Plan, Point
from study.search.book import AGAIN, FAILURE, PRIOR, RUNS, Book, is_feasible
from study.search.trial_points import TrialPoints, legible, measured, without_search
from study.stats import t_quantile
from study.strict import ConfigError
from study.sweep_file import Axes, Sweep, distinct, shown, to_yaml

LEAST = 4  # finished trials from which importances can be told
SHOWN = 5  # best trials printed
NONE_WITHIN = "none within the constraints"

Family = tuple[Book, TrialPoints]


def plan_of(sweep: Sweep, families: Sequence[Family]) -> Plan:
    """Every trial begun, in the order of their numbers, as points of an ordinary sweep."""
    points: dict[str, Point] = {}
    for book, family in families:
        for trial in book.trials():
            for point in _points(family, trial):
                points.setdefault(point.run, point)
    keys = dict.fromkeys(key for point in points.values() for key in point.values)
    tried = tuple(Axes({key: tuple(distinct([p.values[key] for p in points.values()]))}) for key in keys)
    return Plan(replace(without_search(sweep), axes=tried), tuple(points.values()))


def _points(family: TrialPoints, trial: FrozenTrial) -> tuple[Point, ...]:
    if trial.state is TrialState.WAITING or trial.params.keys() != family.space.keys():
        return ()
    try:
        return family.points({key: trial.params[key] for key in family.space})
    except ConfigError:
        return ()


def write_summary(folder: Path, sweep: Sweep, families: Sequence[Family]) -> Plan:
    """`plan.json` for the analysis, `trials.json` with what only the search knows."""
    plan = plan_of(sweep, families)
    write_text(folder / "sweep.yaml", to_yaml(sweep))
    write_text(folder / "plan.json", json.dumps(plan.as_tree(), indent=2, allow_nan=False) + "\n")
    told = [{"search": book.name, **line} for book, family in families for line in lines(book, family)]
    write_text(folder / "trials.json", json.dumps(told, indent=2, allow_nan=False) + "\n", lasting=False)
    return plan


def lines(book: Book, family: TrialPoints) -> list[dict[str, Any]]:
    """One per trial: its values, its runs, its objectives, how it ended."""
    names = list(book.config.directions)
    return [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "failure": trial.user_attrs.get(FAILURE, ""),
            "kind": next((kind for kind in (AGAIN, PRIOR) if kind in trial.user_attrs), ""),
            "values": {**family.family, **{key: legible(value) for key, value in trial.params.items()}},
            "runs": trial.user_attrs.get(RUNS, []),
            "feasible": is_feasible(trial),
            "objectives": dict(zip(names, _values(trial), strict=False)),
        }
        for trial in book.trials()
    ]


def _values(trial: FrozenTrial) -> Sequence[float]:
    """Of a trial that was pruned optuna keeps what was reported last, which is no result."""
    return trial.values if trial.state is TrialState.COMPLETE else ()


def importances(book: Book) -> dict[str, float]:
    """Share of the first objective's variance that each axis explains, by fANOVA; none of too few trials."""
    done = book.trials([TrialState.COMPLETE])
    if len(done) < LEAST or len({trial.values[0] for trial in done}) < 2 or len(book.space) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        judge = FanovaImportanceEvaluator(seed=book.config.seed)
        return get_param_importances(book.study, evaluator=judge, target=lambda trial: trial.values[0])


def found(book: Book, family: TrialPoints) -> list[str]:
    """The best trials, or the Pareto front, and what mattered."""
    names = list(book.config.directions)
    trials = book.trials()
    told = [f"{book.name}: {_counted(trials)}"]
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    within = [trial for trial in done if is_feasible(trial)]
    if done and not within:
        told.append(f"  {NONE_WITHIN}")
    if len(names) == 1:
        best = _each_once(_best_first(book, within))[:SHOWN]
    else:
        front = book.study.best_trials if within else []
        best = _each_once(sorted(front, key=lambda trial: trial.values))
        told.append(f"  Pareto front, {len(best)} points:")
    told += [f"  {_described(trial, family, names)}" for trial in best]
    shares = importances(book)
    if shares:
        told.append(f"  of the spread in {names[0]}: {', '.join(f'{k} {v:.0%}' for k, v in shares.items())} (fANOVA)")
    return told


def _each_once(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Of trials of the same settings, which a sampler may propose again and which are told and not run, the first."""
    return list({tuple(sorted(trial.params.items())): trial for trial in reversed(trials)}.values())[::-1]


def _best_first(book: Book, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """By the first objective."""
    sign = 1 if next(iter(book.config.directions.values())) == "minimize" else -1
    return sorted(trials, key=lambda trial: sign * trial.values[0])


def standing_of(book: Book) -> str:
    """How far a search is, in one line."""
    trials, done = book.trials(), book.trials([TrialState.COMPLETE])
    told = f"{book.name}: {book.ended} of {len(trials)} trials ended"
    others = _words(trial for trial in trials if trial.state.is_finished() and trial.state is not TrialState.COMPLETE)
    told += f" ({others})" if others else ""
    within = [trial for trial in done if is_feasible(trial)]
    if not within:
        return f"{told}, {NONE_WITHIN}" if done else told
    if len(book.config.directions) > 1:
        return f"{told}, {len(book.study.best_trials)} on the Pareto front"
    best = _best_first(book, within)[0]
    return f"{told}, best {next(iter(book.config.directions))} {best.values[0]:.4g} (trial {best.number})"


def _counted(trials: Sequence[FrozenTrial]) -> str:
    return f"{len(trials)} trials: {_words(trials)}"


def _words(trials: Iterable[FrozenTrial]) -> str:
    """How they ended, with how many did so."""
    words = Counter(trial.user_attrs.get(FAILURE) or trial.state.name.lower() for trial in trials)
    return ", ".join(f"{count} {word}" for word, count in words.items())


def _described(trial: FrozenTrial, family: TrialPoints, names: Sequence[str]) -> str:
    points = _points(family, trial)
    values = " ".join(f"{key.rsplit('.', 1)[-1]}={_short(value)}" for key, value in trial.params.items())
    results = ", ".join(
        f"{name} {value:.4g}{_reach(measured(points, name))}" for name, value in zip(names, trial.values, strict=True)
    )
    return f"trial {trial.number}  {values}  {results}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def _reach(values: Sequence[float]) -> str:
    """Of the 95 % interval of a mean over seeds; nothing for one seed, or for what does not vary."""
    n = len(values)
    if n < 2 or max(values) == min(values):
        return ""
    average = sum(values) / n
    deviation = (sum((value - average) ** 2 for value in values) / (n - 1)) ** 0.5
    return f" ± {t_quantile(n - 1) * deviation / n**0.5:.2g}"
