"""One family's trials as optuna keeps them, and who is at which.

A budget is a number of waiting trials, so that any number of processes can draw from it at once and
none is drawn twice. A trial is claimed by a lease, as runs are: one whose holder died is claimed again,
keeps its number and its values, and goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from study.lease import Lease, newest, take
from study.search.config import SearchConfig
from study.search.optuna_parts import grid, make_pruner, make_sampler, suggested, to_optuna
from study.search.space import Distribution
from study.strict import ConfigError

AGAIN = "again"  # user attribute: a trial that was asked for once more, outside the budget, and is never pruned
FAILURE = "failure"  # why a trial has no value
RUNS = "runs"
LOST = "lost"  # [how often in a row processes died at it, at how many images of training]
PRIOR = "prior"  # computed by somebody else, outside the budget
NOTHING: Mapping[str, float] = MappingProxyType({})
OPEN = (TrialState.WAITING, TrialState.RUNNING)


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether it lies within every constraint that was judged."""
    return all(violation <= 0 for violation in trial.constraints.values())


@dataclass(frozen=True)
class Claim:
    """A trial that this process holds."""

    trial: Trial
    lease: Lease
    values: Mapping[str, Any]  # by axis
    again: bool
    orphaned: bool = False  # its former holder died

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
        self.storage, self.name, self.space, self.config, self.folder = storage, name, space, config, folder
        if name not in optuna.get_all_study_names(storage):
            optuna.create_study(study_name=name, storage=storage, directions=list(config.directions.values()))
        self.study = self._study_of(0)
        self._id = storage.get_study_id_from_name(name)

    def trials(self, states: Sequence[TrialState] | None = None) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=tuple(states) if states else None)

    @property
    def waiting(self) -> int:
        return len(self.trials([TrialState.WAITING]))

    @property
    def open(self) -> int:
        """Trials that have not ended."""
        return len(self.trials(OPEN))

    @property
    def ended(self) -> int:
        return len(self.trials()) - self.open

    @property
    def is_finished(self) -> bool:
        return not self.open

    @property
    def failures(self) -> int:
        """Trials that failed and taught nothing, unless they were repeated and gave a value."""
        repaired = {trial.user_attrs.get(AGAIN) for trial in self.trials([TrialState.COMPLETE])}
        failed = {trial.user_attrs.get(AGAIN, trial.number) for trial in self.trials([TrialState.FAIL])}
        return len(failed - repaired)

    def running(self) -> list[FrozenTrial]:
        return self.trials([TrialState.RUNNING])

    def same(self, facts: Mapping[str, str]) -> None:
        """Note what the search is about; refused if it was about something else before."""
        known = self.study.user_attrs.get("facts")
        if known is None:
            self.study.set_metric_names(list(self.config.directions))
            self.study.set_user_attr("facts", dict(facts))
            return
        if not isinstance(known, Mapping):
            raise ConfigError(f"search {self.name} is damaged: what it is about cannot be read")
        changed = [key for key in {**known, **facts} if known.get(key) != facts.get(key)]
        if changed:
            key = changed[0]
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise ConfigError(
                f"search {self.name} was begun with {key}={known.get(key, 'nothing')}, now {facts.get(key, 'nothing')}"
                f"{more}: bring that back, or give the sweep file another name"
            )

    def check(self) -> None:
        """Refuse what no search has written: optuna's storage gives back whatever is in it."""
        if [direction.name.lower() for direction in self.study.directions] != list(self.config.directions.values()):
            raise ConfigError(f"search {self.name} is damaged: its directions are others")
        space = {key: to_optuna(distribution) for key, distribution in self.space.items()}
        for trial in self.trials():
            fault = next(_faults(trial, len(self.config.directions), space), None)
            if fault is not None:
                raise ConfigError(f"search {self.name} is damaged: {fault} of trial {trial.number}")

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
            failed = trial.state is not TrialState.COMPLETE and trial.user_attrs.get(FAILURE) in failures
            if failed and first not in repeated:
                repeated.add(first)
                self.study.enqueue_trial(dict(trial.params), user_attrs={AGAIN: first})

    def claim(self) -> Claim | None:
        """The next trial that nobody is at: a dead process's first, then a new one."""
        for frozen in sorted(self.trials(OPEN), key=lambda trial: (trial.state is TrialState.WAITING, trial.number)):
            folder = self.folder / str(frozen.number)
            known = newest(folder)
            lease = None if known is not None and known.held else take(folder, on_loss=lambda: None)
            if lease is None:
                continue
            claim = self._begin(frozen.number, lease)
            if claim is not None:
                return replace(claim, orphaned=known is not None and not known.holder.released)
        return None

    def reported(self, claim: Claim) -> Mapping[int, float]:
        """Intermediate values by step; a trial that was taken over has its former holder's."""
        return self.storage.get_trial(self._trial_id(claim.number)).intermediate_values

    def _study_of(self, number: int) -> optuna.Study:
        """With the sampler of one trial, and nothing remembered of what other processes may have changed since."""
        sampler, pruner = make_sampler(self.config, number), make_pruner(self.config)
        return optuna.load_study(study_name=self.name, storage=self.storage, sampler=sampler, pruner=pruner)

    def _trial_id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._id, number)

    def _begin(self, number: int, lease: Lease) -> Claim | None:
        lease.__enter__()
        identity = self._trial_id(number)
        frozen = self.storage.get_trial(identity)
        if frozen.state.is_finished():  # between our looking and our taking
            lease.__exit__(None, None, None)
            return None
        if frozen.state is TrialState.WAITING:
            self.storage.set_trial_state_values(identity, TrialState.RUNNING)
        # ask() would begin whichever trial waits first, and never one that a dead process had begun
        trial = Trial(self._study_of(number), identity)
        values = {key: suggested(trial, key, distribution) for key, distribution in self.space.items()}
        return Claim(trial, lease, values, AGAIN in frozen.user_attrs)

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
        self._study_of(claim.number).tell(
            claim.trial, None if values is None else list(values), state, skip_if_finished=True
        )
        claim.release()
        return True

    def add(
        self,
        values: Mapping[str, Any],
        results: Sequence[float],
        runs: Sequence[str],
        violations: Mapping[str, float] = NOTHING,
    ) -> None:
        """Take runs of the store as given."""
        distributions = {key: to_optuna(distribution) for key, distribution in self.space.items()}
        self.study.add_trial(
            optuna.trial.create_trial(
                params=dict(values),
                distributions=distributions,
                values=list(results),
                user_attrs={PRIOR: True, RUNS: list(runs)},
                constraints=dict(violations),
            )
        )


KINDS = {AGAIN: int, FAILURE: str, RUNS: list, LOST: list, PRIOR: bool}


def _faults(trial: FrozenTrial, objectives: int, space: Mapping[str, BaseDistribution]) -> Iterator[str]:
    """Each in a word or two."""
    numbers = [*(trial.values or ()), *trial.constraints.values(), *trial.intermediate_values.values()]
    is_short = trial.state is TrialState.COMPLETE and len(trial.values or ()) != objectives
    if is_short or not all(isinstance(number, int | float) for number in numbers):
        yield "values"
    for key, distribution in trial.distributions.items():
        if distribution != space.get(key) or not _lies_in(distribution, trial.params[key]):
            yield key
    known = {name: value for name, value in trial.user_attrs.items() if name in KINDS}
    yield from (name for name, value in known.items() if not isinstance(value, KINDS[name]))
    if not all(isinstance(run, str) for run in known.get(RUNS, [])):
        yield RUNS
    if LOST in known and [type(value) for value in known[LOST]] != [int, int]:
        yield LOST


def _lies_in(distribution: BaseDistribution, value: Any) -> bool:
    """Of a list, optuna itself has found the value."""
    if isinstance(distribution, IntDistribution | FloatDistribution):
        return isinstance(value, int | float) and distribution.low <= value <= distribution.high
    return True
