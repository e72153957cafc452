"""The fresh process of one cell: a command in, an answer out, until the other end is closed.

`open` builds and warms up, `block` times, `memory` and `energy` are passes of their own, `peak` measures
what the device can do at most.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch

from study.allocator import keep_freed_memory
from study.bench.config import Cell, cell_from_tree
from study.bench.peaks import measure_peaks
from study.bench.resources import measure_energy, measure_memory
from study.bench.timing import LEAST_SAMPLE, Timer, WarmUp, Work, block, timer_for, warm_up
from study.bench.workload import make_work
from study.provenance import provenance

Answer = dict[str, Any]
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class Worker:
    """What one process holds between commands."""

    def __init__(self, cell: Cell, allocator: str) -> None:
        self.allocator = allocator
        self.cell, self.device = cell, torch.device(cell.device)
        self.cpus = pin(cell)
        self.timer: Timer = timer_for(self.device)
        self.work: Work = {}
        self.warm: WarmUp | None = None

    def open(self, longest: float) -> Answer:
        self.work, facts = make_work(self.cell)
        self.warm = warm_up(self.work, self.timer, longest, LEAST_SAMPLE[self.device.type])
        return {"warm_up": asdict(self.warm), "facts": facts | self.facts()}

    def block(self, samples: int, seconds: float) -> Answer:
        assert self.warm is not None
        taken = block(self.work, self.timer, samples, seconds, self.warm.calls_per_sample)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # others of the group share the device and want it while this one waits
        return {"samples": [[*sample.phases, sample.wall, sample.cpu] for sample in taken]}

    def memory(self) -> Answer:
        return measure_memory(lambda: make_work(self.cell)[0], self.device)

    def energy(self, seconds: float) -> Answer:
        assert self.work
        return measure_energy(self.work, self.timer, seconds, self.device)

    def peak(self, seconds: float) -> Answer:
        return asdict(measure_peaks(self.cell, self.timer, seconds))

    def facts(self) -> dict[str, str]:
        settings = {
            "pinned": ",".join(map(str, self.cpus)) or "no",
            "tf32": str(torch.backends.cuda.matmul.allow_tf32).lower(),
            "allocator": self.allocator,
        }
        return {**provenance(self.device), **settings, **gpu_facts(self.device)}


def gpu_facts(device: torch.device) -> dict[str, str]:
    if device.type != "cuda":
        return {}
    found = torch.cuda.get_device_properties(device)
    return {"cuda": str(torch.version.cuda), "gpu_memory_gib": f"{found.total_memory / 2**30:.1f}"}


def pin(cell: Cell) -> list[int]:
    """Keep a CPU cell on the first cores that it may use; [] where that is not possible or not wanted."""
    torch.set_num_threads(cell.threads)
    if torch.device(cell.device).type != "cpu" or not hasattr(os, "sched_setaffinity"):
        return []
    cpus = sorted(os.sched_getaffinity(0))[: cell.threads]
    os.sched_setaffinity(0, cpus)
    return cpus


def answer(do: Callable[[], Answer]) -> Answer:
    """What `do` gives; out of memory and refusals are answers too."""
    try:
        return do()
    except (MemoryError, torch.OutOfMemoryError) as error:
        return {"out_of_memory": one_line(error)}
    except (RuntimeError, ValueError) as error:
        if any(words in str(error).lower() for words in OUT_OF_MEMORY):
            return {"out_of_memory": one_line(error)}
        return {"refused": one_line(error)}
    except Exception as error:  # a foreign module may raise anything
        return {"refused": f"{type(error).__name__}: {one_line(error)}"}


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def serve(connection: Connection, tree: Any) -> None:
    """The life of the process. Ctrl-C is for the parent, which ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker(cell_from_tree(tree), keep_freed_memory())
    with suppress(EOFError, BrokenPipeError):  # nobody asks any more, or waits for the answer
        while True:
            command = connection.recv()
            method = getattr(worker, command.pop("do"))
            connection.send(answer(partial(method, **command)))
