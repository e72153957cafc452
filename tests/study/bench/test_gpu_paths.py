"""What only a GPU answers, held to its contract with stand-ins for events, counters and statistics."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from study.bench.resources import MIB, energy_counter, measure_energy, measure_memory
from study.bench.timing import CudaTimer, take
from tests.study.bench.simulated import SimulatedTimer

GPU = torch.device("cuda")


class Device:
    """Work is queued at once and done when waited for, as on a GPU."""

    def __init__(self) -> None:
        self.queued, self.done, self.waits = 0.0, 0.0, 0

    def work(self, seconds: float) -> None:
        self.queued += seconds

    def wait(self) -> None:
        self.done, self.waits = self.queued, self.waits + 1

    def event(self, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        event = SimpleNamespace(at=None)
        event.record = lambda: setattr(event, "at", self.queued)

        def elapsed(other: SimpleNamespace) -> float:
            assert self.done >= other.at, "read before it was reached"
            return 1e3 * (other.at - event.at)

        event.elapsed_time = elapsed
        return event


def test_events_are_read_after_one_wait_and_give_each_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    monkeypatch.setattr(torch.cuda, "synchronize", device.wait)
    work = {"forward": lambda: device.work(0.25), "backward": lambda: device.work(0.5)}
    sample = take(work, CudaTimer(), 4)
    assert sample.phases == pytest.approx((0.25, 0.5))
    assert device.waits == 2  # before the first mark and after the last
    assert 0 < sample.wall < 0.25  # the wall's clock is its own: nothing was really done


def test_memory_is_the_peak_of_a_warm_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    held, peaks = 10 * MIB, {"allocated": 50 * MIB, "reserved": 64 * MIB}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: calls.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: held)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: peaks["allocated"])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: peaks["reserved"])
    found = measure_memory(lambda: {"call": lambda: calls.append("call")}, GPU)
    assert calls == ["call", "wait", "reset", "call", "wait"]
    assert found == {"allocated_peak_mib": 50, "reserved_peak_mib": 64, "held_mib": 10}


def test_energy_is_what_work_adds_to_the_idle_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 W idle and 3 J for each call of 10 ms: 2 J of which would not have been drawn anyway."""
    timer = SimulatedTimer()
    drawn = SimpleNamespace(calls=0)

    def call() -> None:
        timer.now += 0.01
        drawn.calls += 1

    def sleep(seconds: float) -> None:
        timer.now += seconds

    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 1e3 * (100 * timer.now + 2 * drawn.calls),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    monkeypatch.setattr("study.bench.resources.time.sleep", sleep)
    found = measure_energy({"call": call}, timer, 1.0, GPU)
    assert found["idle_watts"] == pytest.approx(100)
    assert found["joules_per_call"] == pytest.approx(2)
    assert found["calls"] in (100, 101)


def test_without_a_counter_there_is_no_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy_counter(GPU) is None
