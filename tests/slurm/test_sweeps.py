"""Sweeps on the cluster do what sweeps do here, once, however many points they have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Begun = Callable[[str], Any]


@pytest.mark.scenario("headline")
def test_the_study_of_m_gives_the_local_rows_and_submits_once(begun: Begun) -> None:
    found = begun("headline")
    assert "6 runs submitted: job " in found["first"]
    assert "python -m study.status ablate_M --results" in found["first"]
    assert "6 runs are queued or running already" in found["second"]
    assert "submitted" not in found["second"]
    code, said = found["followed"]
    assert code == 0, said
    assert "[6/6]" in said
    assert found["jobs"] == found["jobs at last"] == 1
    assert "6 runs: 6 done" in found["last"]
    assert len(found["here"]) == 6
    assert found["there"] == found["here"]


@pytest.mark.scenario("many")
def test_five_hundred_points_in_packs_over_two_arrays(begun: Begun) -> None:
    study, said = begun("many")
    assert "500 runs submitted: job " in said
    assert {run.read_state().attempts for run in study.runs} == {1}
    arrays = sorted(path.name for path in (study.results / "sweep" / "slurm" / "logs").glob("*_submission.sh"))
    assert len(arrays) == 2  # 8 packs of 63, where an array may have 6 tasks
