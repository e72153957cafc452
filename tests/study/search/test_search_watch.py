"""What a person sees of a search: how many trials have ended, how, and the best so far."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
from rich.console import Console

from study.execute import Wishes
from study.launch.work import Task
from study.search.command import check, set_up
from study.search.summary import Family, standing_of
from study.search.watch import LiveWatch, PlainWatch
from study.sweep import main
from study.sweep_file import read_sweep
from tests.study.search.fake_objectives import SWEEP, bowl_run, diverging_run
from tests.study.sweeping import sweep_file


def families_of(tmp_path: Path, *words: str) -> list[Family]:
    sweep = read_sweep(sweep_file(tmp_path, SWEEP), [f"results={tmp_path / 'r'}", *words])
    return set_up(sweep, tmp_path / "r" / sweep.name, check(sweep, Wishes()), Wishes())


def test_before_and_after_trials_have_ended(tmp_path: Path) -> None:
    ((book, _),) = families_of(tmp_path, "search.trials=12")
    assert standing_of(book) == "lrs: 0 of 12 trials ended"
    assert main([str(tmp_path / "lrs.yaml"), f"results={tmp_path / 'r'}", "search.trials=12"], diverging_run) == 0
    best = min(trial.values[0] for trial in book.trials() if trial.values)
    number = next(trial.number for trial in book.trials() if trial.values == [best])
    lost = sum("failure" in trial.user_attrs for trial in book.trials())
    told = f"lrs: 12 of 12 trials ended ({lost} diverged), best val_loss {best:.4g} (trial {number})"
    assert lost
    assert standing_of(book) == told


def test_of_several_objectives_the_front_is_counted(tmp_path: Path) -> None:
    words = ["search.objectives=[val_loss, gmacs]", "search.sampler=nsga2"]
    ((book, _),) = families_of(tmp_path, *words)
    assert main([str(tmp_path / "lrs.yaml"), f"results={tmp_path / 'r'}", *words], bowl_run) == 0
    assert standing_of(book) == f"lrs: 6 of 6 trials ended, {len(book.study.best_trials)} on the Pareto front"


def test_the_live_view_has_a_bar_the_families_and_the_runs_in_hand(tmp_path: Path) -> None:
    families = families_of(tmp_path)
    ((book, _),) = families
    watch = LiveWatch(families, lambda: [Task(str(tmp_path / "r"), "0123abcd")])
    claim = book.claim()
    assert claim is not None
    book.tell(claim, [0.25])
    watch.changed()
    seen = io.StringIO()
    Console(file=seen, width=100).print(watch._render())
    bar, family, run = seen.getvalue().splitlines()
    assert "1/6" in bar
    assert family.strip() == "lrs: 1 of 6 trials ended, best val_loss 0.25 (trial 0)"
    assert run.strip() == "0123abcd  starting"


def test_in_a_log_it_is_a_line_when_another_trial_has_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    families = families_of(tmp_path)
    ((book, _),) = families
    watch = PlainWatch(families)
    with caplog.at_level(logging.INFO, "study.sweep"):
        watch.changed()
        claim = book.claim()
        assert claim is not None
        watch.changed()
        book.tell(claim, [0.25])
        watch.changed()
        watch.changed()
    assert caplog.messages == ["lrs: 1 of 6 trials ended, best val_loss 0.25 (trial 0)"]
