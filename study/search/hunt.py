"""The search itself: claim a trial when there is room for a run, do its runs, tell optuna what they gave.

Any number of processes can be at one search: the local pool's owner, or one per job of a cluster.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from study.execute import Listener, Wishes, freeze
from study.interruption import StopRequest
from study.launch.launcher import Launcher
from study.launch.work import CONTINUED, Outcome, Task, give_up, record_death
from study.plan import Point, Standing, standing
from study.run_directory import Failure, State, Status
from study.search.book import LOST, NOTHING, RUNS, Book, Claim
from study.search.config import SearchConfig
from study.search.trial_points import BEFOREHAND, TrialPoints, mean, violations_of
from study.strict import ConfigError

log = logging.getLogger("study.sweep")

POLL = 0.2  # seconds between looks for something to do
SELDOM = 2.0  # the same after a while: each look asks for the lease of every open trial
LEARNED = (Failure.PRUNED, Failure.DIVERGED, Failure.BAD_CONFIG, Failure.OUT_OF_MEMORY)
"""Ends that say something of the point itself: the sampler is to avoid its neighbourhood."""

INFEASIBLE = "outside the constraints"


@dataclass
class Hand:
    """A trial of ours, its runs one after another."""

    book: Book
    claim: Claim
    points: tuple[Point, ...]
    done: int = 0
    at_work: bool = False
    not_before: float = 0.0
    tries: int = 0

    @property
    def point(self) -> Point:
        return self.points[self.done]


@dataclass
class Hunt:
    """One call's worth of work on a search."""

    config: SearchConfig
    families: Sequence[tuple[Book, TrialPoints]]
    launcher: Launcher
    wishes: Wishes
    listener: Listener
    changed: Callable[[], None] = lambda: None  # called when a trial has begun or ended
    patience: float = float("inf")  # seconds to wait, with nothing left to begin, for what others are at
    deaths: int = 0  # in a row and without a step forward, after which a trial is given up; 0: never
    halted: bool = False
    signal: int = 0  # that was heard between runs
    stopped: tuple[Task, State] | None = None  # the run that heard one
    failures: int = 0
    _hands: dict[Task, Hand] = field(default_factory=dict)  # by the run at work
    _idle: list[Hand] = field(default_factory=list)
    _turn: threading.RLock = field(default_factory=threading.RLock)
    _deadline: float = float("inf")
    _busy: float = 0.0  # when there was last something to begin

    def run(self) -> None:
        """Until every trial has ended, by us or others, or the caller wants to stop, or time is up."""
        if self.config.timeout:
            self._deadline = time.monotonic() + self.config.timeout
        told, pause, self._busy = False, POLL, time.monotonic()
        with StopRequest() as stop:

            def should_stop() -> bool:
                return self.halted or stop.number is not None

            try:
                while not should_stop() and not self._is_finished() and not self._is_idle():
                    before = self._busy
                    for outcome in self.launcher.launch(self._tasks(should_stop), should_stop):
                        self._ended(outcome)
                    if not should_stop() and not self._is_finished():
                        told = told or self._tell_waiting()
                        pause = POLL if self._busy != before else min(2 * pause, SELDOM)
                        time.sleep(pause)
            finally:
                self.signal = stop.number or 0
                self.halted = self.halted or stop.number is not None
                self._let_go()

    @property
    def expired(self) -> bool:
        return time.monotonic() > self._deadline

    def _is_finished(self) -> bool:
        return self.expired or all(book.is_finished for book, _ in self.families)

    def _is_idle(self) -> bool:
        """Whether others have been at all that is left for so long that they can be trusted to live."""
        return time.monotonic() - self._busy > self.patience

    def _tell_waiting(self) -> bool:
        self.listener.note("the trials that are left are being done by other processes: waiting")
        return True

    def _let_go(self) -> None:
        """Trials not finished stay as they are, for the next call."""
        with self._turn:
            for hand in [*self._idle, *self._hands.values()]:
                hand.claim.release()
            self._idle, self._hands = [], {}

    def _tasks(self, should_stop: Callable[[], bool]) -> Iterator[Task]:
        """The next run whenever there is room for one; asked by one thread of the launcher at a time."""
        while not should_stop():
            with self._turn:
                task = self._next()
                busy = bool(self._hands or self._idle)
                self._busy = time.monotonic() if busy else self._busy
            if task is not None:
                yield task
            elif not busy:
                return
            else:
                time.sleep(POLL / 4)

    def _next(self) -> Task | None:
        """The next run of a trial in hand, or the first of a new one."""
        while True:
            now = time.monotonic()
            hand = next((hand for hand in self._idle if hand.not_before <= now), None)
            if hand is None:
                if self.expired or not self._claim():
                    return None
                continue
            self._idle.remove(hand)
            task = self._prepared(hand)
            if task is not None:
                return task

    def _claim(self) -> bool:
        """Begin a trial of the family that has most left; False if there is none to begin."""
        for book, points in sorted(self.families, key=lambda family: -family[0].waiting):
            claim = book.claim()
            if claim is not None:
                self._busy = time.monotonic()
                self._begin(book, points, claim)
                return True
        return False

    def _begin(self, book: Book, family: TrialPoints, claim: Claim) -> None:
        try:
            points = family.points(claim.values)
            hand = Hand(book, claim, points)
            violations = violations_of(points[:1], self.config.bounds, BEFOREHAND)
        except ConfigError as error:
            self.listener.note(f"trial {claim.number} of {book.name}: {error}")
            book.tell(claim, failure=Failure.BAD_CONFIG, violations=dict.fromkeys(self.config.bounds, 1.0))
            return
        claim.trial.set_user_attr(RUNS, [point.run for point in points])
        if claim.orphaned and self.deaths and self._is_deadly(hand):
            return
        if any(violation > 0 for violation in violations.values()):
            self._told(hand, failure=INFEASIBLE, violations=violations)
            return
        self._idle.append(hand)
        self.changed()

    def _is_deadly(self, hand: Hand) -> bool:
        """Whether processes keep dying at this trial without a step forward; then it has failed."""
        images = sum(point.directory.read_state().images for point in hand.points)
        times, before = hand.claim.trial.user_attrs.get(LOST, [0, -1])
        times = times + 1 if images <= before else 1
        hand.claim.trial.set_user_attr(LOST, [times, images])
        if times < self.deaths:
            return False
        point = next((each for each in hand.points if standing(each)[0] is not Standing.DONE), hand.points[-1])
        task = Task(point.config.results, point.run)
        noted = record_death(task, Failure.KILLED, "its processes died without a word").state
        if noted is None or noted.status is Status.DONE:
            return False
        state = give_up(task, noted, times)
        self.listener.ended(task, state)
        self._failed(hand, state)
        return True

    def _prepared(self, hand: Hand) -> Task | None:
        """The task of the hand's next run; None if there is nothing to do for it, and its end is noted."""
        point = hand.point
        stands, state = standing(point)
        if stands is Standing.DONE:
            self._answered(hand)
            return None
        if stands is Standing.FAILED and not self._wants(hand, state):
            self._failed(hand, state)
            return None
        task = Task(point.config.results, point.run)
        if task in self._hands:  # a trial of the same values: its run is ours already
            self._later(hand)
            return None
        point.directory.path.mkdir(parents=True, exist_ok=True)
        freeze(point)
        hand.at_work = True
        self._hands[task] = hand
        return task

    def _wants(self, hand: Hand, state: State) -> bool:
        return hand.claim.again or state.failure in self.wishes.retry

    def _later(self, hand: Hand) -> None:
        hand.not_before = time.monotonic() + POLL
        self._idle.append(hand)

    def _ended(self, outcome: Outcome) -> None:
        with self._turn:
            hand, self._busy = self._hands.pop(outcome.task, None), time.monotonic()
            if hand is None:
                return
            state = outcome.state
            if state is None:
                self._later(hand)
            elif state.status is Status.PENDING and state.failure in (Failure.STOPPED, Failure.PREEMPTED):
                self.halted, self.stopped = True, (outcome.task, state)
                self._idle.append(hand)
            elif state.status is Status.PENDING and state.failure in CONTINUED:
                self._again_or_never(outcome.task, hand, state)
            elif state.status is Status.DONE:
                self.listener.ended(outcome.task, state)
                self._answered(hand)
            else:
                self.listener.ended(outcome.task, state)
                self._failed(hand, state)

    def _again_or_never(self, task: Task, hand: Hand, state: State) -> None:
        hand.tries += 1
        if hand.tries < self.wishes.tries:
            self.listener.note(f"{task.run} {state.failure}: {state.message}; it will continue")
            self._idle.append(hand)
            return
        state = give_up(task, state, hand.tries)
        self.listener.ended(task, state)
        self._failed(hand, state)

    def _answered(self, hand: Hand) -> None:
        """One more run of the trial is done."""
        hand.done, hand.tries = hand.done + 1, 0
        if len(hand.points) > hand.done:
            if self._wilcoxon_prunes(hand):
                self._told(hand, failure=Failure.PRUNED)
            else:
                self._idle.append(hand)
            return
        try:
            values = [mean(hand.points, metric) for metric in self.config.directions]
        except ConfigError as error:
            self.listener.note(f"trial {hand.claim.number} of {hand.book.name}: {error}")
            self._told(hand, failure=Failure.BUG, ignored=True)
            return
        hand.book.tell(hand.claim, values, violations=violations_of(hand.points, self.config.bounds))
        self.changed()

    def _wilcoxon_prunes(self, hand: Hand) -> bool:
        """After each seed: whether this point is worse than the best by more than the seeds' scatter."""
        if self.config.chosen_pruner[0] != "wilcoxon" or hand.claim.again:
            return False
        metric = next(iter(self.config.directions))
        step = hand.done - 1
        if step not in hand.book.reported(hand.claim):
            hand.claim.trial.report(mean(hand.points[step : hand.done], metric), step)
        return hand.claim.trial.should_prune()

    def _failed(self, hand: Hand, state: State) -> None:
        failure = state.failure or Failure.BUG
        self._told(hand, failure=failure, ignored=failure not in LEARNED)
        self.failures += failure not in LEARNED
        self.halted = self.halted or 0 < self.wishes.max_failures <= self.failures

    def _told(self, hand: Hand, failure: str, ignored: bool = False, violations: Mapping[str, float] = NOTHING) -> None:
        known = violations or violations_of(hand.points, self.config.bounds, BEFOREHAND)
        hand.book.tell(hand.claim, failure=failure, ignored=ignored, violations=known)
        self.changed()
