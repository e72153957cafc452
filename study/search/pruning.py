"""What a worker tells of a run while it trains, and whether the run is worth its end."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import optuna
from optuna.pruners import WilcoxonPruner
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage
from optuna.trial import Trial, TrialState

from study.config import RunConfig, run_id
from study.run_directory import State
from study.search.book import AGAIN, RUNS
from study.search.config import SearchConfig
from study.search.optuna_parts import make_pruner
from study.search.storage import open_storage

BY_CURVE = ("median", "hyperband")
"""Pruners that look at a run's validation losses."""

MOST_SEEDS = 64


def least_seeds(search: SearchConfig) -> int:
    """From which on the Wilcoxon pruner can prune. It is asked before the last seed, and of k differences of one
    sign its one-sided p-value is 2^-k, which has to be below the threshold."""
    made = inspect.signature(WilcoxonPruner).bind(**search.chosen_pruner[1])
    made.apply_defaults()
    threshold, start = made.arguments["p_threshold"], max(2, made.arguments["n_startup_steps"])
    return 1 + next((k for k in range(start, MOST_SEEDS) if 0.5**k < threshold), max(start, MOST_SEEDS))


@dataclass(frozen=True)
class Reporting:
    """Work that reports each validation to its trial, and is stopped where the pruner says so.

    A step of the pruner is one validation. Of a trial with several seeds the first one's run is heard:
    once that has passed, the others are done to their end.
    """

    work: Callable[..., State]
    search: SearchConfig
    folder: Path  # the sweep's
    names: tuple[str, ...]  # of the families' searches

    def __call__(self, config: RunConfig) -> State:
        trial = self._trial(run_id(config))
        if trial is None:
            return self.work(config)
        return self.work(config, hear=lambda images, loss: self._hear(trial, config, images, loss))

    def _trial(self, run: str) -> Trial | None:
        storage = storage_of(self.folder, self.search.storage)
        for name in self.names:
            study = optuna.load_study(
                study_name=name, storage=storage, sampler=RandomSampler(), pruner=make_pruner(self.search)
            )
            for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if frozen.user_attrs.get(RUNS, [None])[0] == run and AGAIN not in frozen.user_attrs:
                    study_id = storage.get_study_id_from_name(name)
                    return Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, frozen.number))
        return None

    def _hear(self, trial: Trial, config: RunConfig, images: int, loss: float) -> bool:
        step = max(1, images // config.train.validate_every)
        known = next(each for each in trial.study.get_trials(deepcopy=False) if each.number == trial.number)
        if step not in known.intermediate_values:  # else it was killed and does this once more
            trial.report(loss, step)
        return trial.should_prune()


@cache
def storage_of(folder: Path, url: str) -> BaseStorage:
    """Once per process."""
    return open_storage(folder, url)
