"""What only a GPU answers, held to its contract with stand-ins for events, counters and statistics."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from study.bench.block import BenchConfig
from study.bench.cell import answer
from study.bench.change import changed
from study.bench.compare import paired_ratio
from study.bench.config import Cell, Network, Protocol
from study.bench.peaks import Peaks
from study.bench.resources import MIB, energy_counter, measure_energy, measure_memory
from study.bench.rows import Measured, lines_of, rows_of
from study.bench.schedule import Outcome, Taken
from study.bench.store import machine_folder
from study.bench.table import table_line
from study.bench.timing import CudaTimer, Sample, take
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


def gpu_cell(monkeypatch: pytest.MonkeyPatch, wall: float) -> Measured:
    """A cell of a pretended GPU, whose events say 2 ms and whose wall clock says `wall`."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    taken = [Taken(r, b, 0, Sample((0.002,), wall, wall)) for r in range(3) for b in range(10)]
    facts = {"device": "Stand-in GPU", "gpu_memory_gib": "80.0"}
    opened = [{"warm_up": {"first": 1.0, "stable": True}, "facts": facts}] * 3
    cell = Cell(Network("dit-tiny", (8, 8)), batch=4, dtype="bf16", compile=True, device="cuda")
    resources = {"allocated_peak_mib": 50.0, "reserved_peak_mib": 64.0}, {"joules_per_call": 2.0, "calls": 100}
    return Measured(cell, Outcome(taken, opened), None, *resources, Peaks(1000.0, 900.0, "bf16"), common=True)


def test_rows_of_a_gpu_have_both_clocks_memory_energy_and_utilisation(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = gpu_cell(monkeypatch, wall=0.003)
    lines = list(lines_of(measured, Protocol()))
    rows = {row.metric: row for row in rows_of(lines, Protocol())}
    assert rows["latency_ms"].value == pytest.approx(2)  # the events' word
    assert rows["latency_wall_ms"].value == pytest.approx(3)  # the rest is launching
    assert "latency_cpu_ms" not in rows
    assert lines[0].cpu_ratio is None
    assert rows["throughput"].value == pytest.approx(2000)
    gmacs = measured.cell.gmacs()
    assert gmacs
    assert rows["latency_mfu"].value == pytest.approx(2 * gmacs / 0.002 / 1000)
    assert (rows["allocated_peak_mib"].value, rows["reserved_peak_mib"].value) == (50, 64)
    assert (rows["joules_per_call"].value, rows["joules_per_call"].n) == (2, 100)
    assert rows["latency_ms"].provenance["device"] == "Stand-in GPU"
    line = table_line(lines[0])
    assert (line["peak_mib"], line["dtype"]) == (50, "bf16 compiled")


def test_a_change_on_a_gpu_is_judged_by_events_and_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch that became slower while the kernels did not is no verdict of either kind."""
    before, after = (gpu_cell(monkeypatch, wall) for wall in (0.003, 0.004))
    found = changed(before.cell, before.outcome.taken, after.outcome.taken, Protocol(), paired_ratio)
    assert found.verdict == "no answer, the two clocks disagree"
    assert "wall clock +33.3%" in str(found)


def test_a_gpus_folder_is_named_after_it_and_auto_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    block = BenchConfig()
    assert block.place == "cuda"
    assert machine_folder(block.place).name == "nvidia-h100-80gb-hbm3"
    assert block.plain().device == "cuda"


def test_what_a_gpu_refuses_for_lack_of_memory_is_an_answer() -> None:
    def allocate() -> dict[str, object]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB.\nGPU 0 has ...")

    assert answer(allocate) == {"out_of_memory": "CUDA out of memory. Tried to allocate 80.00 GiB. GPU 0 has ..."}
