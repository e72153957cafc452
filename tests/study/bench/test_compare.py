"""Intervals and ratios against closed forms, and the order of turns."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from study.bench.compare import CPU, WALL, WHOLE, log_blocks, paired_ratio, summarise, unpaired_ratio
from study.bench.config import Protocol
from study.bench.process import DoesNotFitError
from study.bench.schedule import Taken, measure
from study.bench.timing import Sample
from study.stats import t_interval
from tests.study.bench.simulated import Machine, SimulatedCell


def samples(table: np.ndarray, scale: float = 1.0) -> list[Taken]:
    return [
        Taken(repeat, block, 0, Sample((scale * seconds,), 2 * scale * seconds, 3 * scale * seconds))
        for repeat, row in enumerate(table)
        for block, seconds in enumerate(row)
    ]


def test_a_constant_factor_is_found_exactly_whatever_the_noise_both_share() -> None:
    table = np.random.default_rng(0).lognormal(size=(3, 10))
    for phase in (WHOLE, WALL, CPU, 0):
        ratio = paired_ratio(samples(table, 1.7), samples(table), phase)
        assert (ratio.value, *ratio.interval) == pytest.approx((1.7, 1.7, 1.7))
        assert ratio.told == "slower"


def test_of_many_processes_that_agree_within_the_interval_is_students() -> None:
    """Blocks without noise leave the processes' own: there Student's interval is exact."""
    logs = np.random.default_rng(1).normal(0.1, 0.05, size=12)
    table = np.exp(np.repeat(logs[:, None], 4, axis=1))
    ratio = paired_ratio(samples(table), samples(np.ones_like(table)), WHOLE)
    low, high = (math.exp(end) for end in t_interval(logs))
    assert ratio.interval == pytest.approx((low, high), abs=0.02 * (high - low) + 0.003)
    assert ratio.value == pytest.approx(math.exp(logs.mean()))


def test_paired_blocks_cancel_what_unpaired_ones_cannot() -> None:
    shared = np.random.default_rng(2).lognormal(sigma=0.5, size=(5, 10))
    ours, base = samples(shared, 1.1), samples(shared)
    paired, unpaired = paired_ratio(ours, base, WHOLE), unpaired_ratio(ours, base, WHOLE)
    assert paired.told == "slower"
    assert unpaired.told == "not told apart"
    assert paired.value == pytest.approx(unpaired.value)


def test_median_quartiles_and_p95_are_numpys() -> None:
    table = np.random.default_rng(3).lognormal(sigma=0.1, size=(3, 10))
    found = summarise(samples(table), WHOLE, Protocol())
    quartiles = tuple(np.quantile(table, [0.5, 0.25, 0.75, 0.95]))
    assert (found.median, found.low_quartile, found.high_quartile, found.p95) == pytest.approx(quartiles)
    assert found.interval[0] < found.median < found.interval[1]
    assert found.n == 30


def test_a_block_is_its_median_and_none_may_be_missing() -> None:
    taken = [Taken(0, 0, 0, Sample((s,), s, s)) for s in (1.0, 9.0, 2.0)]
    assert log_blocks(taken, WHOLE) == pytest.approx(np.log([[2.0]]))
    with pytest.raises(ValueError, match="every block of every process"):
        log_blocks([*taken, Taken(1, 1, 0, Sample((1.0,), 1.0, 1.0))], WHOLE)


def test_one_process_tells_of_itself_only() -> None:
    table = np.random.default_rng(4).lognormal(sigma=0.01, size=(1, 10))
    assert math.isfinite(summarise(samples(table), WHOLE, Protocol()).interval[1])


def test_cells_take_turns_in_shuffled_order_each_once_a_round() -> None:
    machine = Machine(0)
    protocol = Protocol(min_samples=8, min_seconds=0.0, repeats=2, blocks=4)
    taken = measure({name: partial(SimulatedCell, machine, 1.0) for name in "abc"}, protocol)
    orders = set()
    for repeat in range(2):
        for number in range(4):
            turns = {n: {t.turn for t in o.taken if (t.repeat, t.block) == (repeat, number)} for n, o in taken.items()}
            assert sorted(turn for each in turns.values() for turn in each) == [0, 1, 2]
            orders.add(tuple(sorted(turns, key=lambda name: min(turns[name]))))
    assert len(orders) > 2


class Greedy(SimulatedCell):
    def block(self, samples: int, seconds: float) -> list[Sample]:
        raise DoesNotFitError("tried to allocate 80 GiB")


def test_one_that_does_not_fit_is_a_result_and_stops_nobody() -> None:
    machine = Machine(0)
    found = measure({"a": partial(SimulatedCell, machine, 0.1), "b": partial(Greedy, machine, 0.1)}, Protocol())
    assert found["b"].out_of_memory == "tried to allocate 80 GiB"
    assert len(found["b"].opened) == 1  # not tried again in the next process
    assert len(found["a"].taken) >= 30
