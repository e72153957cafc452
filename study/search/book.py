"""One family's trials as optuna keeps them, and who is at which.

A budget is a number of waiting trials, so that any number of processes can draw from it at once and
none is drawn twice. A trial is claimed by a lease, as runs are: one whose holder died is claimed again,
keeps its number and its values, and goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from study.lease import Lease, newest, take
from study.search.config import SearchConfig
from study.search.optuna_parts import grid, make_pruner, make_sampler, to_optuna
from study.search.space import Distribution
from study.strict import ConfigError

AGAIN = "again"  # user attribute: a trial that was asked for once more, outside the budget, and is never pruned
FAILURE = "failure"  # why a trial has no value
RUNS = "runs"
PRIOR = "prior"  # computed by somebody else, outside the budget
NOTHING: Mapping[str, float] = MappingProxyType({})
OPEN = (TrialState.WAITING, TrialState.RUNNING)


@dataclass(frozen=True)
class Claim:
    """A trial that this process holds."""

    trial: Trial
    lease: Lease
    values: Mapping[str, Any]  # by axis
    again: bool

    @property
    def number(self) -> int:
        return self.trial.number

    def release(self) -> None:
        self.lease.__exit__(None, None, None)


class Book:
    """The trials of one family."""

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        space: Mapping[str, Distribution],
        config: SearchConfig,
        folder: Path,
    ) -> None:
        """`folder` is for the leases."""
        self.name, self.space, self.config, self.folder = name, space, config, folder
        sampler, pruner = make_sampler(config, 0), make_pruner(config)
        if name not in optuna.get_all_study_names(storage):
            optuna.create_study(study_name=name, storage=storage, directions=list(config.directions.values()))
        self.study = optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner)

    def trials(self, states: Sequence[TrialState] | None = None) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=tuple(states) if states else None)

    @property
    def waiting(self) -> int:
        return len(self.trials([TrialState.WAITING]))

    @property
    def is_finished(self) -> bool:
        return not self.trials(OPEN)

    def same(self, facts: Mapping[str, str]) -> None:
        """Note what the search is about; refused if it was about something else before."""
        known = self.study.user_attrs.get("facts")
        if known is None:
            self.study.set_metric_names(list(self.config.directions))
            self.study.set_user_attr("facts", dict(facts))
            return
        changed = [key for key in {**known, **facts} if known.get(key) != facts.get(key)]
        if changed:
            key = changed[0]
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise ConfigError(
                f"search {self.name} was begun with {key}={known.get(key, 'nothing')}, now {facts.get(key, 'nothing')}"
                f"{more}: bring that back, or give the sweep file another name"
            )

    def fill(self) -> None:
        """Have as many trials wait as the budget lacks."""
        counted = [trial for trial in self.trials() if not {AGAIN, PRIOR} & trial.user_attrs.keys()]
        if self.config.chosen_sampler[0] == "grid":
            for point in grid(self.space, self.config.seed)[len(counted) : self.config.trials]:
                self.study.enqueue_trial(point)
        else:
            for _ in range(self.config.trials - len(counted)):
                self.study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING))

    def repeat(self, failures: Sequence[str]) -> None:
        """Let trials that ended so wait once more, unless they were repeated already."""
        trials = self.trials()
        repeated = {trial.user_attrs[AGAIN] for trial in trials if AGAIN in trial.user_attrs and trial.state in OPEN}
        repeated |= {t.user_attrs[AGAIN] for t in trials if AGAIN in t.user_attrs and FAILURE not in t.user_attrs}
        for trial in trials:
            first = trial.user_attrs.get(AGAIN, trial.number)
            if trial.user_attrs.get(FAILURE) in failures and first not in repeated:
                repeated.add(first)
                self.study.enqueue_trial(dict(trial.params), user_attrs={AGAIN: first})

    def claim(self) -> Claim | None:
        """The next trial that nobody is at: a dead process's first, then a new one."""
        for frozen in sorted(self.trials(OPEN), key=lambda trial: (trial.state is TrialState.WAITING, trial.number)):
            lease = self._take(frozen.number)
            if lease is None:
                continue
            claim = self._begin(frozen.number, lease)
            if claim is not None:
                return claim
        return None

    def reported(self, claim: Claim) -> Mapping[int, float]:
        """Intermediate values by step; a trial that was taken over has its former holder's."""
        return self.study._storage.get_trial(claim.trial._trial_id).intermediate_values

    def _take(self, number: int) -> Lease | None:
        folder = self.folder / str(number)
        known = newest(folder)
        return None if known is not None and known.held else take(folder, on_loss=lambda: None)

    def _begin(self, number: int, lease: Lease) -> Claim | None:
        lease.__enter__()
        frozen = next(trial for trial in self.trials() if trial.number == number)
        storage = self.study._storage
        if frozen.state.is_finished():  # between our looking and our taking
            lease.__exit__(None, None, None)
            return None
        if frozen.state is TrialState.WAITING:
            storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING)
        self.study.sampler = make_sampler(self.config, number)
        self.study._thread_local.cached_all_trials = None
        trial = Trial(self.study, frozen._trial_id)
        values = {key: self._suggest(trial, key, distribution) for key, distribution in self.space.items()}
        return Claim(trial, lease, values, AGAIN in frozen.user_attrs)

    def _suggest(self, trial: Trial, key: str, distribution: Distribution) -> Any:
        return trial._suggest(key, to_optuna(distribution))

    def tell(
        self,
        claim: Claim,
        values: Sequence[float] | None = None,
        failure: str = "",
        ignored: bool = False,
        violations: Mapping[str, float] = NOTHING,
    ) -> bool:
        """How a trial ended; False if another process took it over meanwhile.

        `ignored`: the sampler is not to learn from a failure; it avoids the neighbourhood of all others.
        """
        if claim.lease.lost:
            claim.release()
            return False
        for metric, violation in violations.items():
            claim.trial.set_constraint(metric, violation)
        if failure:
            claim.trial.set_user_attr(FAILURE, failure)
        state = TrialState.COMPLETE if values is not None else TrialState.FAIL if ignored else TrialState.PRUNED
        self.study.sampler = make_sampler(self.config, claim.number)
        self.study.tell(claim.trial, None if values is None else list(values), state, skip_if_finished=True)
        claim.release()
        return True

    def add(self, values: Mapping[str, Any], results: Sequence[float], runs: Sequence[str]) -> None:
        """Take runs of the store as given."""
        distributions = {key: to_optuna(distribution) for key, distribution in self.space.items()}
        self.study.add_trial(
            optuna.trial.create_trial(
                params=dict(values),
                distributions=distributions,
                values=list(results),
                user_attrs={PRIOR: True, RUNS: list(runs)},
            )
        )
