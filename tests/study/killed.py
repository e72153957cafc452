"""A run in a process of its own, killed with SIGKILL from outside or in the middle of a write."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

import study.atomic
import study.checkpoint
from study.config import RunConfig
from study.run import run

# A server that has imported everything, and computed nothing, starts each process in milliseconds.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.study.killed", "sklearn.datasets", "torch._dynamo"])  # optimisers import dynamo


def start(config: RunConfig, die_at_write: int | None = None) -> BaseProcess:
    """Begin, or continue, the run; `die_at_write` kills it inside that write to the disk, counted from 1."""
    process = _SERVER.Process(target=_run, args=(config, die_at_write))
    process.start()
    return process


def warm_up() -> None:
    """Have the server imported everything before a first process is timed."""
    process = _SERVER.Process(target=os.getpid)
    process.start()
    process.join()


def _run(config: RunConfig, die_at_write: int | None) -> None:
    torch.set_num_threads(1)
    if die_at_write is not None:
        _die_at_write(die_at_write)
    run(config)


def _die_at_write(number: int) -> None:
    """Among them, in every checkpoint: half of the tensors written; all written, none in place; in place, no record."""
    writes = 0
    save_file, sync = study.checkpoint.save_file, study.atomic.sync

    def count() -> bool:
        nonlocal writes
        writes += 1
        return writes == number

    def half_a_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
        save_file(tensors, path)
        if count():
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def before_sync(path: Path) -> None:
        if count():
            os.kill(os.getpid(), signal.SIGKILL)
        sync(path)

    study.checkpoint.save_file = half_a_file  # type: ignore[assignment]
    study.atomic.sync = before_sync
