"""Memory and energy, each in a pass of its own without timers: what either observes would disturb the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from study.bench.timing import Timer, Work, take
from study.progress import peak_memory_mib

MIB = 2**20
IDLE_SECONDS = 1.0


def measure_memory(make: Callable[[], Work], device: torch.device) -> dict[str, Any]:
    """Peaks of one warm call, in MiB: allocated and reserved on a GPU, of the fresh process on a CPU."""
    before = peak_memory_mib(torch.device("cpu"))
    work = make()
    _call(work)
    if device.type != "cuda":
        _call(work)
        peak = peak_memory_mib(device)
        return {"process_peak_mib": peak, "growth_mib": max(0.0, peak - before)}
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated() / MIB
    _call(work)
    torch.cuda.synchronize()
    allocated, reserved = torch.cuda.max_memory_allocated() / MIB, torch.cuda.max_memory_reserved() / MIB
    return {"allocated_peak_mib": allocated, "reserved_peak_mib": reserved, "held_mib": held}


def _call(work: Work) -> None:
    for phase in work.values():
        phase()


def measure_energy(work: Work, timer: Timer, seconds: float, device: torch.device) -> dict[str, Any]:
    """Joules per call by the GPU's own counter, less what it draws idle; {} where there is no such counter."""
    counter = energy_counter(device)
    if counter is None:
        return {}
    timer.settle()
    start, began = counter(), timer.wall()
    time.sleep(IDLE_SECONDS)
    idle = (counter() - start) / (timer.wall() - began)
    start, began, calls = counter(), timer.wall(), 0
    while timer.wall() - began < seconds:
        take(work, timer)
        calls += 1
    spent, lasted = counter() - start, timer.wall() - began
    return {"joules_per_call": max(0.0, spent - idle * lasted) / calls, "idle_watts": idle, "calls": calls}


def energy_counter(device: torch.device) -> Callable[[], float] | None:
    """Joules drawn by the GPU so far; None without a GPU, NVML or a counter."""
    if device.type != "cuda":
        return None
    try:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # no module, no driver, no right to ask, a part of a card: no energy
        return None
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
