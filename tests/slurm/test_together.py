"""One run by several processes on several nodes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from study.run_directory import RunDirectory, read_curve
from tests.slurm.disturbed import Study, left_by

Begun = Callable[[str], Any]


@pytest.fixture(scope="session")
def curve_alone(alone_run: RunDirectory) -> list[dict[str, Any]]:
    return read_curve(alone_run.curve)


@pytest.mark.scenario("two_nodes")
def test_two_nodes_give_the_curve_of_one_process(begun: Begun, curve_alone: list[dict[str, Any]]) -> None:
    whole, _ = begun("two_nodes")
    together = read_curve(whole.run.curve)
    assert [point["images"] for point in together] == [point["images"] for point in curve_alone]
    for ours, theirs in zip(together, curve_alone, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert ranks_of(whole) == {"2"}


@pytest.mark.scenario("two_nodes")
def test_a_lost_process_costs_one_attempt(begun: Begun) -> None:
    whole, lossy = begun("two_nodes")
    assert lossy.state().attempts == 2
    assert left_by(lossy.run) == left_by(whole.run)


@pytest.mark.scenario("two_nodes", "warned_together")
def test_a_warning_lets_all_processes_save_and_leave_together(begun: Begun) -> None:
    whole, _ = begun("two_nodes")
    warned = begun("warned_together")
    assert warned.state().attempts == 2
    assert left_by(warned.run) == left_by(whole.run)


def ranks_of(study: Study) -> set[str]:
    return {attempt["ranks"] for attempt in json.loads(study.run.provenance.read_text(encoding="utf-8"))}
