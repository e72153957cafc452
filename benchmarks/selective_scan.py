"""CPU time of the selective scan, forward and forward + backward, against the textbook loop over tokens.

    python benchmarks/selective_scan.py [--rounds 15]

Both sides take turns in one process, on one thread, with one allocator setting. Times are process CPU
time, so other load on the machine mostly cancels in the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from models.ssm.selective_scan import selective_scan, selective_scan_loop
from study.allocator import keep_freed_memory


class Case(NamedTuple):
    name: str
    batch: int
    channels: int
    length: int
    states: int

    def inputs(self) -> list[Tensor]:
        """u, delta, A, B, C, D, z, delta_bias, with the rates and steps of a fresh Mamba layer."""
        B, E, L, N = self[1:]
        generator = torch.Generator().manual_seed(0)
        u, delta, z = torch.randn(3, B, E, L, generator=generator)
        maps = torch.randn(2, B, N, L, generator=generator)
        A = -torch.arange(1.0, N + 1).repeat(E, 1)
        return [x.requires_grad_() for x in (u, 0.1 * delta, A, *maps, torch.ones(E), z, torch.full((E,), -4.0))]


CASES = (Case("DiS-S/2, one image", 1, 736, 258, 16), Case("small, training", 64, 128, 66, 16))


def forward(scan: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    with torch.no_grad():
        scan(*inputs)


def forward_backward(scan: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    torch.autograd.grad(scan(*inputs).sum(), inputs)


def milliseconds(step: Callable[..., None], scan: Callable[..., Tensor], inputs: list[Tensor]) -> float:
    start = time.process_time()
    step(scan, inputs)
    return 1e3 * (time.process_time() - start)


def measure(case: Case, step: Callable[..., None], rounds: int) -> str:
    """One line of the table: medians, and the median and quartiles of the ratio within a round."""
    inputs = case.inputs()
    for scan in (selective_scan, selective_scan_loop):
        milliseconds(step, scan, inputs)  # warm up
    pairs = [
        [milliseconds(step, scan, inputs) for scan in (selective_scan_loop, selective_scan)] for _ in range(rounds)
    ]
    loop, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    low, ratio, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    label = f"{case.name} (B{case.batch} E{case.channels} L{case.length} N{case.states})"
    return f"{label:48} {step.__name__:17} {loop:9.1f} {ours:9.1f} {ratio:7.1f}x ({low:.1f}-{high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Selective scan against the loop over tokens, CPU milliseconds.")
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    keep_freed_memory()
    torch.set_num_threads(1)
    print(f"{'shape':48} {'':17} {'loop ms':>9} {'scan ms':>9} {'ratio':>8} (quartiles)")
    for case in CASES:
        for step in (forward, forward_backward):
            print(measure(case, step, rounds), flush=True)


if __name__ == "__main__":
    main()
