"""Samples, warm-up and blocks on a clock that is a number."""

from __future__ import annotations

import pytest

from study.bench.timing import Sample, block, stands_still, take, warm_up
from tests.study.bench.simulated import SimulatedTimer


class Costs:
    """Calls that take these seconds in turn, the last one for ever."""

    def __init__(self, timer: SimulatedTimer, *seconds: float) -> None:
        self.timer, self.seconds, self.calls = timer, list(seconds), 0

    def __call__(self) -> None:
        self.timer.now += self.seconds[min(self.calls, len(self.seconds) - 1)]
        self.calls += 1


def test_a_sample_is_the_mean_of_its_calls_phase_by_phase() -> None:
    timer = SimulatedTimer()
    work = {"forward": Costs(timer, 1.0, 3.0), "backward": Costs(timer, 4.0)}
    assert take(work, timer, 2) == Sample((2.0, 4.0), 6.0, 6.0)


def test_warm_up_lasts_until_times_stand_still_and_its_first_call_is_apart() -> None:
    timer = SimulatedTimer()
    falling = [0.1 / (n + 1) for n in range(20)]
    warm = warm_up({"call": Costs(timer, 9.0, *falling, 0.005)}, timer, 100.0, 1e-3)
    assert warm.first == 9.0
    assert warm.stable
    assert 20 < warm.calls < 40


def test_warm_up_gives_up_when_time_is_up_and_says_so() -> None:
    timer = SimulatedTimer()
    doubling = [0.001 * 1.5**n for n in range(40)]
    warm = warm_up({"call": Costs(timer, *doubling)}, timer, 0.2, 1e-3)
    assert not warm.stable
    assert warm.seconds < 0.5


def test_short_calls_share_a_sample() -> None:
    timer = SimulatedTimer()
    warm = warm_up({"call": Costs(timer, 1e-5)}, timer, 1.0, 1e-3)
    assert warm.calls_per_sample in (100, 101)  # the sum of a hundred hundredths


@pytest.mark.parametrize(("seconds", "samples"), [(0.0, 3), (0.1, 10)])
def test_a_block_meets_both_bounds_after_an_untimed_call(seconds: float, samples: int) -> None:
    timer = SimulatedTimer()
    call = Costs(timer, 5.0, 1 / 96)  # the first one is not short, so it counts
    assert len(block({"call": call}, timer, 3, 0.0)) == 3
    cold = Costs(timer, 0.04, 1 / 96)
    taken = block({"call": cold}, timer, 3, seconds)
    assert len(taken) == samples
    assert max(sample.wall for sample in taken) < 0.02
    assert cold.calls == samples + 1


def test_long_samples_stand_for_themselves() -> None:
    assert stands_still([2.0, 2.01])
    assert not stands_still([0.02, 0.0201])
