"""Several processes on this machine that do one run together, as torchrun would start them.

torchrun --nproc-per-node 2 -m tests.study.ranked STEP RANK ...   # study.run ..., in which that rank dies there
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from study.config import RunConfig
from study.distributed import Ranks, join
from study.run import exit_code, main, run
from study.strict import ConfigError
from study.train import Trainer

PATIENCE = 60.0  # seconds of silence in tests that lose nobody: their machine may be busy

# A server that has imported everything, and computed nothing, starts each process in milliseconds.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.study.ranked", "study.sharding", "sklearn.datasets", "torch._dynamo"])

Act = Callable[[Ranks], object]


def start(world_size: int, act: Callable[..., object], *args: Any, timeout: float = PATIENCE) -> list[BaseProcess]:
    """One process per rank, each doing `act(ranks, *args)`; what that returns is its exit code."""
    port = free_port()
    processes = [
        _SERVER.Process(target=_join_and, args=(rank, world_size, port, timeout, act, args))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    return processes


def finish(processes: list[BaseProcess], seconds: float = 120.0) -> list[int | None]:
    """Exit codes, once all have ended; None for one that had not ended in time."""
    for process in processes:
        process.join(seconds)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def together(world_size: int, act: Callable[..., object], *args: Any, timeout: float = PATIENCE) -> list[int | None]:
    return finish(start(world_size, act, *args, timeout=timeout))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _join_and(
    rank: int, world_size: int, port: int, timeout: float, act: Callable[..., object], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK_TIMEOUT=str(int(timeout)),
    )
    with join() as ranks:
        code = act(ranks, *args)
    sys.exit(code if isinstance(code, int) else 0)


def do_run(ranks: Ranks, config: RunConfig, prepare: Act | None = None) -> int:
    """The run, after `prepare` has put its fault in place."""
    if prepare is not None:
        prepare(ranks)
    try:
        return exit_code(run(config))
    except ConfigError as error:
        print(f"rank {ranks.rank}: {error}", file=sys.stderr)
        return 2


def after_step(step: int, rank: int, action: Callable[[], object]) -> None:
    """Do `action` on that rank after that training step."""
    original = Trainer.step

    def stepping(trainer: Trainer) -> None:
        original(trainer)
        if trainer.steps == step and trainer.ranks.rank == rank:
            action()

    Trainer.step = stepping  # type: ignore[method-assign]


def ask_rank_1_to_stop(ranks: Ranks) -> None:
    after_step(5, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))


def stop_rank_3(ranks: Ranks) -> None:
    after_step(7, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))


def stop_rank_1_sampling(ranks: Ranks) -> None:
    import study.attempt

    original = study.attempt.draw_together

    def drawing(*args: Any) -> Any:
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    study.attempt.draw_together = drawing


def stop_rank_1_validating(ranks: Ranks) -> None:
    original = Trainer._losses

    def stopping(*args: Any) -> Any:
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    Trainer._losses = stopping  # type: ignore[method-assign]


def hide_data_from_rank_1(ranks: Ranks) -> None:
    import study.train

    original = study.train.load

    def load(*args: Any) -> Any:
        if ranks.rank == 1:
            raise FileNotFoundError("no images on this machine")
        return original(*args)

    study.train.load = load


def kill_rank_0(ranks: Ranks) -> None:
    after_step(5, 0, lambda: os.kill(os.getpid(), signal.SIGKILL))


def kill_rank_1(ranks: Ranks) -> None:
    after_step(5, 1, lambda: os.kill(os.getpid(), signal.SIGKILL))


def freeze_rank_1(ranks: Ranks) -> None:
    after_step(5, 1, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def exhaust_rank_1(ranks: Ranks) -> None:
    def fail() -> None:
        raise MemoryError("no more of it")

    after_step(5, 1, fail)


def poison_rank_1(ranks: Ranks) -> None:
    """Its weights go bad; the others learn of it through the loss alone."""

    def poison() -> None:
        import gc

        trainer = next(each for each in gc.get_objects() if isinstance(each, Trainer))
        with torch.no_grad():
            trainer.parameters[0].fill_(float("inf"))

    after_step(5, 1, poison)


def fill_the_disk(ranks: Ranks) -> None:
    import study.checkpoint

    def full(tensors: object, path: object) -> None:
        raise OSError(28, "No space left on device")

    study.checkpoint.save_file = full  # type: ignore[assignment]


if __name__ == "__main__":
    after_step(int(sys.argv[1]), int(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL))
    sys.exit(main(sys.argv[3:]))
