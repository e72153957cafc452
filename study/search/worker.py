"""What a job of a cluster does for a search: trial after trial, until the budget is spent or its own time is up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from study.execute import Wishes
from study.launch.inline import Inline
from study.launch.slurm_job import Body, say
from study.launch.work import Outcome, Task, Work
from study.lease import BEAT, EXPIRY
from study.run import run
from study.run_directory import Failure, State
from study.search.command import OFTEN, Search, check, open_families
from study.search.hunt import Hunt
from study.search.summary import write_summary
from study.sweep_file import Sweep, parse_sweep

PATIENCE = EXPIRY + BEAT  # seconds: long enough to hear that somebody else's trial has fallen silent


class Bench(Inline):
    """The job itself as a launcher, with what it does around every run."""

    def __init__(self, body: Body, work: Work) -> None:
        super().__init__(work)
        self.body = body

    def do(self, task: Task) -> Outcome:
        return Outcome(task, self.body.do(task, self.work))


class Told:
    """Says in the job's log what becomes of trials; of runs the job itself does."""

    def ended(self, task: Task, state: State) -> None: ...

    def note(self, line: str) -> None:
        say(line)


def work_at_search(body: Body) -> int:
    """The exit code of the job: whether a run failed by its own fault, or the signal that ended it."""
    submission = body.submission
    sweep = frozen_sweep(submission.search, Path(submission.folder).parent)
    assert sweep.search is not None
    wishes = Wishes(retry=tuple(map(Failure, submission.retry)), tries=sweep.launcher.tries)
    families = open_families(sweep, Path(submission.folder).parent, check(sweep, wishes))
    # every worker keeps the files up to date: together no more often than one alone would
    search = Search(sweep, Path(submission.folder).parent, families, often=OFTEN * len(submission.tasks))
    hunt = Hunt(
        sweep.search,
        families,
        Bench(body, search.reporting(run)),
        wishes,
        Told(),
        search.changed,
        patience=PATIENCE,
        deaths=wishes.tries,
    )
    hunt.run()
    write_summary(search.folder, sweep, families)
    if hunt.stopped is not None:
        return body.leave(*hunt.stopped, number=hunt.signal)
    if hunt.signal or body.signals.numbers:
        return body.leave(number=hunt.signal)
    return 1 if hunt.failures else 0


def frozen_sweep(text: str, folder: Path) -> Sweep:
    """As it was submitted, with results where they were then, whatever folder the job is in."""
    sweep = parse_sweep(text, folder.name)
    return replace(sweep, overrides={**sweep.overrides, "results": str(folder.parent)})
