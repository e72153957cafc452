"""What keeping S4D's spectra between the steps of sampling gains, as a ratio within one process.

    python benchmarks/sampling_cache.py [--rounds 20]

Both sides take turns: a forward pass with the tables kept, and one that has to make them anew. Measured
for one S4D layer (bidirectional, width 64) and for a whole diffussm-tiny, by CPU time on one thread.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import torch
from torch import Tensor, nn

from models import build
from models.ssm.s4d import S4D


def seconds(module: nn.Module, inputs: tuple[Tensor, ...], cached: bool) -> float:
    if not cached:
        for layer in module.modules():
            if isinstance(layer, S4D):
                layer._tables.clear()
    start = time.process_time()
    module(*inputs)
    return time.process_time() - start


def report(name: str, length: int, batch: int, module: nn.Module, inputs: tuple[Tensor, ...], rounds: int) -> None:
    times = np.array([[seconds(module, inputs, cached) for cached in (False, True)] for _ in range(rounds + 1)])[1:]
    low, middle, high = np.quantile(times[:, 0] / times[:, 1], [0.25, 0.5, 0.75])
    without, kept = 1e3 * np.median(times, axis=0)
    print(f"{name:14s} {length:6d} {batch:6d} {without:11.2f} {kept:9.2f} {middle:7.2f}x  {low:.2f}..{high:.2f}")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'':14s} {'tokens':>6s} {'batch':>6s} {'anew, ms':>11s} {'kept, ms':>9s} {'gain':>8s}  quartiles")
    for length in (256, 1024):
        side = math.isqrt(length)
        layer, network = S4D(64, direction="both").eval(), build("diffussm-tiny", size=side).eval()
        for batch in (1, 8):
            report("S4D layer", length, batch, layer, (torch.randn(batch, length, 64),), rounds)
            x = torch.randn(batch, network.config.channels, side, side)
            inputs = (x, torch.full((batch,), 500.0), torch.zeros(batch, dtype=torch.int64))
            report("diffussm-tiny", length, batch, network, inputs, rounds)


if __name__ == "__main__":
    main()
