"""The settings that cost nothing and make small runs on a CPU faster, each against doing without.

    python benchmarks/cheap_wins.py [--rounds 20]

Sides take turns in one process; CPU time of the process on one thread, medians. The allocator can only
be set once per process, so its two sides run in processes of their own, in turns.
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from study.compose import resolve
from study.data import to_float
from study.train import Trainer

WORDS = ["backbone=diffussm-tiny", "train.images=1_000_000", "machine.device=cpu"]


def cpu_ms(work: Callable[[], object], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        work()
    return 1e3 * (time.process_time() - start) / repeats


def compare(name: str, ours: Callable[[], object], other: Callable[[], object], rounds: int, repeats: int) -> None:
    sides = {"ours": ours, "other": other}
    times = {side: [cpu_ms(work, repeats)] for side, work in sides.items()}  # warm up
    for _ in range(rounds):
        for side, work in sides.items():
            times[side].append(cpu_ms(work, repeats))
    report(name, np.array(times["ours"][1:]), np.array(times["other"][1:]))


def report(name: str, ours: np.ndarray, other: np.ndarray) -> None:
    low, middle, high = np.quantile(other / ours, [0.25, 0.5, 0.75])
    print(f"{name:44s} {np.median(other):9.3f} {np.median(ours):9.3f} {middle:6.2f}x  {low:.2f}..{high:.2f}")


def optimiser(trainer: Trainer, fused: bool) -> Callable[[], object]:
    parameters = [torch.nn.Parameter(p.detach().clone()) for p in trainer.parameters]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return torch.optim.AdamW(parameters, fused=fused, foreach=None if fused else False).step


def average_one_by_one(trainer: Trainer) -> Callable[[], None]:
    average = copy.deepcopy(trainer.averages[0])

    @torch.no_grad()
    def step() -> None:
        for mine, theirs in zip(average.parameters(), trainer.network.parameters(), strict=True):
            mine.lerp_(theirs, 0.001)

    return step


def resident(trainer: Trainer) -> Callable[[], object]:
    draws, position = trainer.draws, iter(range(0, 10**9, 64))

    def batch() -> object:
        index = draws._indices(next(position), 64)
        return to_float(draws.images.images[index]), draws.images.labels[index]

    return batch


def loader(trainer: Trainer) -> Callable[[], object]:
    images = trainer.draws.images
    data = DataLoader(TensorDataset(images.images, images.labels), 64, shuffle=True, drop_last=True)

    def endless() -> object:
        while True:
            for x, y in data:
                yield to_float(x), y

    batches = endless()
    return lambda: next(batches)  # type: ignore[call-overload]


def step_in_own_process(keep: bool) -> float:
    flag = {**os.environ, "KEEP_FREED_MEMORY": str(int(keep))}
    done = subprocess.run(
        [sys.executable, __file__, "--one-process"], env=flag, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def one_process() -> None:
    torch.set_num_threads(1)
    if os.environ["KEEP_FREED_MEMORY"] == "1":
        from study.allocator import keep_freed_memory

        keep_freed_memory()
    trainer = Trainer(resolve([*WORDS, "train.batch=256"]), torch.device("cpu"))
    cpu_ms(trainer.step, 3)
    print(cpu_ms(trainer.step, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--one-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_process:
        return one_process()
    torch.set_num_threads(1)
    print(f"{'CPU ms, one thread':44s} {'without':>9s} {'with':>9s} {'gain':>7s}  quartiles")
    trainer = Trainer(resolve(WORDS), torch.device("cpu"))
    compare(
        "fused AdamW (without: one by one)", optimiser(trainer, True), optimiser(trainer, False), options.rounds, 20
    )
    compare("foreach average (without: one by one)", trainer._average, average_one_by_one(trainer), options.rounds, 20)
    compare("resident data (without: DataLoader)", resident(trainer), loader(trainer), options.rounds, 17)
    pairs = [(step_in_own_process(True), step_in_own_process(False)) for _ in range(max(2, options.rounds // 5))]
    ours, other = np.array(pairs).T
    report("kept memory, diffussm-tiny step of 256", ours, other)


if __name__ == "__main__":
    main()
