"""Work of known relative cost, under jitter, spikes, drift and unequal processes, is told as what it is."""

from __future__ import annotations

from functools import partial

import pytest

from study.bench.compare import WHOLE, paired_ratio, ranking, summarise, unpaired_ratio
from study.bench.config import Protocol
from study.bench.schedule import Outcome, measure
from tests.study.bench.simulated import Machine, SimulatedCell

PROTOCOL = Protocol(min_samples=30, min_seconds=0.6)
COSTS = {"base": 0.010, "same": 0.010, "slower": 0.0108, "double": 0.020}
TRIALS = 100


def timed(machine: Machine, costs: dict[str, float], protocol: Protocol = PROTOCOL) -> dict[str, Outcome]:
    return measure({name: partial(SimulatedCell, machine, cost) for name, cost in costs.items()}, protocol)


def test_known_costs_are_ranked_right_and_their_ratios_lie_in_their_intervals() -> None:
    ranked, covered, told = 0, dict.fromkeys(("same", "slower", "double"), 0), 0
    for seed in range(TRIALS):
        taken = {name: outcome.taken for name, outcome in timed(Machine(seed), COSTS).items()}
        ranked += ranking({name: taken[name] for name in ("base", "slower", "double")}) == ["base", "slower", "double"]
        for name in covered:
            ratio = paired_ratio(taken[name], taken["base"], WHOLE, seed)
            covered[name] += ratio.interval[0] <= COSTS[name] / COSTS["base"] <= ratio.interval[1]
            told += name == "double" and ratio.told == "slower"
    assert ranked >= 0.95 * TRIALS
    # 300 intervals of 95 %: fewer than 276 would have a chance of under one percent.
    assert sum(covered.values()) >= 276, covered
    assert told == TRIALS  # and they are not so wide that they say nothing


def test_a_drift_cancels_between_turns_and_only_there() -> None:
    machine = Machine(3, jitter=0.01, drift=3.0, process=0.0, spikes=0.0)
    taken = timed(machine, {"a": 0.01, "b": 0.01})
    paired = paired_ratio(taken["b"].taken, taken["a"].taken, WHOLE)
    assert paired.told == "not told apart"
    assert paired.value == pytest.approx(1, abs=0.02)
    before = timed(machine, {"a": 0.01})["a"].taken
    machine.now += 60
    after = timed(machine, {"a": 0.01})["a"].taken
    assert abs(unpaired_ratio(after, before, WHOLE).value - 1) > 0.1


@pytest.mark.parametrize(("jitter", "verdict"), [(0.02, ""), (0.12, "noisy"), (0.5, "rejected")])
def test_noise_is_flagged_then_rejected(jitter: float, verdict: str) -> None:
    taken = timed(Machine(0, jitter=jitter, drift=0.0), {"a": 0.01})["a"].taken
    assert summarise(taken, WHOLE, PROTOCOL).verdict == verdict
