"""`python -m study.sweep` on a sweep file with a `search:` block."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from optuna.trial import TrialState

from study.answer import answer
from study.estimate import estimate
from study.execute import Wishes
from study.launch.config import SlurmConfig
from study.launch.launcher import make_launcher
from study.launch.slurm_packs import SPREAD
from study.launch.work import Work, owner_of
from study.lease import take
from study.plan import Plan, Trees, check_defaults
from study.plan_table import worker_count
from study.progress import duration
from study.run import check_writable, talk_to_console
from study.search.book import Book
from study.search.config import SearchConfig
from study.search.hunt import Hunt
from study.search.optuna_parts import grid, make_pruner, make_sampler
from study.search.prior import add_priors
from study.search.pruning import BY_CURVE, Reporting, least_seeds
from study.search.storage import check_reachable, open_storage
from study.search.summary import Family, found, write_summary
from study.search.trial_points import TrialPoints, check_axes, check_metrics, families
from study.search.watch import watching
from study.strict import ConfigError
from study.sweep_file import Sweep
from study.throughput import recorded_speed

log = logging.getLogger("study.sweep")

STOPPED = 130
PATIENCE = 60.0  # seconds for another process to have set the search up
OFTEN = 2.0  # seconds between summaries


def search_sweep(sweep: Sweep, wishes: Wishes, work: Work, plan_only: bool, resubmit: bool = False) -> int:
    """The exit code: 0 all trials ended, or sent to a cluster; 1 some failed, 130 stopped."""
    spaces = check(sweep, wishes)
    folder = Path(spaces[0].probe().config.results) / sweep.name
    print("\n".join(describe(sweep, spaces)))
    if plan_only:
        return 0
    check_writable(folder)
    console = talk_to_console(terminal=sys.stderr.isatty())
    try:
        if isinstance(sweep.launcher, SlurmConfig):
            return _on_cluster(sweep, sweep.launcher, folder, spaces, wishes, resubmit)
        return Search(sweep, folder, set_up(sweep, folder, spaces, wishes)).carry_out(wishes, work)
    finally:
        logging.getLogger("study").removeHandler(console)


def _on_cluster(
    sweep: Sweep, config: SlurmConfig, folder: Path, spaces: list[TrialPoints], wishes: Wishes, resubmit: bool
) -> int:
    """Nothing is written before the cluster has said that it would take such jobs, and nothing asked if all is done."""
    from study.launch.slurm import Slurm
    from study.search.cluster import search_on_cluster

    slurm = None if (folder / "trials.json").exists() else Slurm(config, folder, resubmit)
    search = Search(sweep, folder, set_up(sweep, folder, spaces, wishes))
    if search.is_finished:
        return search.conclude(search.failures)
    search.changed()
    return search_on_cluster(search, wishes, slurm or Slurm(config, folder, resubmit))


def check(sweep: Sweep, wishes: Wishes) -> list[TrialPoints]:
    """Everything that can refuse a search before a file is written."""
    config = _config(sweep)
    if isinstance(sweep.launcher, SlurmConfig) and sweep.launcher.processes > 1:
        raise ConfigError(
            f"launcher: a run of a search has one process, not {sweep.launcher.processes}: leave nodes and "
            "tasks_per_node, say at most gpus_per_node=1, and let launcher.parallel be the number of runs at a time"
        )
    if wishes.force:
        raise ConfigError("--force does not go with search: give the sweep file another name to search anew")
    make_sampler(config, 0)
    make_pruner(config)
    if config.chosen_sampler[0] == "grid":
        grid(sweep.space, config.seed)
    check_defaults(sweep)
    check_axes(sweep)
    trees = Trees(sweep)
    spaces = [TrialPoints(sweep, trees, family) for family in families(sweep)]
    for space in spaces:
        probe = space.probe().config
        check_metrics(sweep, probe)
        if config.chosen_pruner[0] in BY_CURVE:
            _check_curves(sweep, config, probe.train.validate_every)
    if config.chosen_pruner[0] == "wilcoxon" and len(spaces[0].seeds) < (least := least_seeds(config)):
        reason = (
            f"search: pruner=wilcoxon compares seeds, and of {len(spaces[0].seeds)} none can prune: give it {least}"
        )
        raise sweep.source.error(("search", "pruner"), f"{reason} or more")
    return spaces


def _config(sweep: Sweep) -> SearchConfig:
    assert sweep.search is not None
    return sweep.search


def _check_curves(sweep: Sweep, config: SearchConfig, validate_every: int) -> None:
    name = config.chosen_pruner[0]
    if list(config.directions) != ["val_loss"]:
        raise sweep.source.error(("search", "pruner"), f"search: pruner={name} hears val_loss: make that the objective")
    if not validate_every:
        raise sweep.source.error(("search", "pruner"), f"search: pruner={name} needs train.validate_every above 0")


def describe(sweep: Sweep, spaces: list[TrialPoints]) -> list[str]:
    config, seeds = _config(sweep), len(spaces[0].seeds)
    speed = recorded_speed(Path(spaces[0].probe().config.results))
    seconds = sum(estimate(space.probe().config, speed).seconds * config.trials * seeds for space in spaces)
    launcher = sweep.launcher
    workers = (launcher.parallel or SPREAD) if isinstance(launcher, SlurmConfig) else worker_count(launcher)
    who = f"{len(spaces)} families x " if config.per else ""
    runs = f" of {seeds} seeds" if seeds > 1 else ""
    aims = ", ".join(f"{direction} {metric}" for metric, direction in config.directions.items())
    return [
        *([sweep.question] if sweep.question else []),
        *(f"  {key}: {distribution}" for key, distribution in sweep.space.items()),
        f"{who}{config.trials} trials{runs}, {config.chosen_sampler[0]}: {aims}",
        f"about {duration(seconds / workers)} with {workers} worker{'s' * (workers > 1)}, "
        "if all were as the first corner of the space",
    ]


def set_up(sweep: Sweep, folder: Path, spaces: list[TrialPoints], wishes: Wishes) -> list[Family]:
    """Studies and their budgets, made by one process while others that come at once wait for it."""
    config = _config(sweep)
    if config.storage:
        check_reachable(config.storage)  # before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / "search"):
        found = open_families(sweep, folder, spaces)
        for book, space in found:
            book.fill()
            if config.prior:
                add_priors(book, space)
            book.repeat([failure.value for failure in wishes.retry])
    return found


def open_families(sweep: Sweep, folder: Path, spaces: list[TrialPoints]) -> list[Family]:
    """The studies of a search that was set up; refused if they are about something else."""
    config = _config(sweep)
    storage = open_storage(folder, config.storage)
    found = [
        (Book(storage, space.name, space.space, config, folder / "search" / str(index)), space)
        for index, space in enumerate(spaces)
    ]
    for book, space in found:
        book.same(space.facts())
        book.check()
    return found


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    deadline = time.monotonic() + PATIENCE
    while (lease := take(folder)) is None:
        if time.monotonic() > deadline:
            raise ConfigError(f"{owner_of(folder)} has been setting up {folder.parent.name} for {PATIENCE:.0f} s")
        time.sleep(0.05)
    with lease:
        yield


@dataclass
class Search:
    """A search that is set up, and its files."""

    sweep: Sweep
    folder: Path
    families: list[Family]
    often: float = OFTEN  # seconds between summaries
    _written: float = field(default=float("-inf"))

    def carry_out(self, wishes: Wishes, work: Work) -> int:
        """In this process, or by processes of this machine."""
        assert not isinstance(self.sweep.launcher, SlurmConfig)
        launcher = make_launcher(self.sweep.launcher, self.reporting(work))
        with watching(self.families, launcher.active) as watch:

            def changed() -> None:
                self.changed()
                watch.changed()

            hunt = Hunt(_config(self.sweep), self.families, launcher, wishes, watch, changed)
            hunt.run()
        return self.conclude(hunt.failures, hunt.expired)

    def reporting(self, work: Work) -> Work:
        """The same work, heard by the pruner while it is done, if it cares."""
        config = _config(self.sweep)
        if config.chosen_pruner[0] not in BY_CURVE:
            return work
        return Reporting(work, config, self.folder.absolute(), tuple(book.name for book, _ in self.families))

    @property
    def is_finished(self) -> bool:
        return all(book.is_finished for book, _ in self.families)

    @property
    def failures(self) -> int:
        """Trials that ended by a fault which is none of their points', and were not done again since."""
        return sum(book.failures for book, _ in self.families)

    def changed(self) -> None:
        """A trial has begun or ended."""
        if time.monotonic() - self._written > self.often:
            write_summary(self.folder, self.sweep, self.families)
            self._written = time.monotonic()

    def conclude(self, failures: int = 0, expired: bool = False) -> int:
        """Say what was found, and what was not done; the exit code."""
        plan: Plan = write_summary(self.folder, self.sweep, self.families)
        trials = [trial for book, _ in self.families for trial in book.trials()]
        if any(trial.state is TrialState.COMPLETE for trial in trials):
            print(answer(self.folder, plan.as_tree()))
        for book, family in self.families:
            print("\n".join(found(book, family)))
        left = sum(not trial.state.is_finished() for trial in trials)
        if left:
            print(f"{left} of {len(trials)} trials are not done; the same command continues", file=sys.stderr)
        if failures:
            return 1
        return STOPPED if left and not expired else 0
