"""Every way a job can end: the sweep continues bit for bit, and status said what had happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.slurm.disturbed import Study, left_by

Begun = Callable[[str], Any]
Alone = dict[str, object]


def assert_as_alone(study: Study, alone: Alone, attempts: int) -> None:
    run = study.runs[0] if len(study.runs) == 1 else next(r for r in study.runs if r.identity == _identity(study))
    assert run.read_state().attempts == attempts
    assert left_by(run) == alone


def _identity(study: Study) -> str:
    """Of the run with seed 0."""
    return next(run.identity for run in study.runs if "seed: 0\n" in run.config.read_text(encoding="utf-8"))


def said(study: Study, *texts: str) -> bool:
    """Whether status had all of these in one line at some moment."""
    return any(all(text in line for text in texts) for line in study.seen)


@pytest.mark.scenario("preempted")
def test_preempted_by_a_higher_partition(begun: Begun, alone: Alone) -> None:
    study = begun("preempted")
    assert_as_alone(study, alone, attempts=2)
    assert said(study, "queued", "restarted 1 times", "preempted: makes room for another job")


@pytest.mark.scenario("requeued")
def test_requeued_by_hand(begun: Begun, alone: Alone) -> None:
    study = begun("requeued")
    assert_as_alone(study, alone, attempts=2)


@pytest.mark.scenario("cancelled_task")
def test_cancelled_by_scancel(begun: Begun, alone: Alone) -> None:
    study = begun("cancelled_task")
    assert_as_alone(study, alone, attempts=2)


@pytest.mark.scenario("cancelled_sweep")
def test_cancelled_by_our_command(begun: Begun, alone: Alone) -> None:
    study, said_then = begun("cancelled_sweep")
    assert "stopped: " in said_then
    assert said_then.count("stopped: ") == 2
    assert_as_alone(study, alone, attempts=2)


@pytest.mark.scenario("killed")
def test_python_killed(begun: Begun, alone: Alone) -> None:
    study, code, told = begun("killed")
    assert_as_alone(study, alone, attempts=2)
    assert code == 0, told
    assert "killed: " in told
    assert "it will continue" in told


@pytest.mark.scenario("node_lost")
def test_node_lost_while_its_zombie_lives(begun: Begun, alone: Alone) -> None:
    study, old, zombie_lived = begun("node_lost")
    assert zombie_lived
    assert study.state().pid != old
    assert_as_alone(study, alone, attempts=2)


@pytest.mark.scenario("controller")
def test_controller_restarted(begun: Begun, alone: Alone) -> None:
    study = begun("controller")
    assert_as_alone(study, alone, attempts=1)


@pytest.mark.scenario("two_minutes")
def test_two_minute_limit_hit_twice(begun: Begun, alone: Alone) -> None:
    study = begun("two_minutes")
    assert_as_alone(study, alone, attempts=3)
    assert said(study, "restarted 1 times", "timed out: ")
    assert said(study, "restarted 2 times", "timed out: ")
