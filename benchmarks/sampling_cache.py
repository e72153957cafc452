"""What keeping S4D's spectra between the steps of sampling gains, as a ratio within one process.

    python benchmarks/sampling_cache.py [--rounds 5]

Both sides take turns, by CPU time on one thread. `layer`: twenty evaluations of one S4D layer for one image,
where 2x is claimed at 256 tokens and more. `samples`: twenty DDIM steps of a whole diffussm-tiny, from noise to
bytes, the first of which makes the tables on either side; guided ones ask for two outputs per step. There the
gain is bounded by S4D's share of a step, which dense layers, norms and the growing batch make smaller, and which
falls the faster the tables are made. N = 16 is diffussm-tiny's state size, 64 that of every published size.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from models import Denoiser, build
from models.ssm.s4d import S4D
from study.allocator import keep_freed_memory
from study.diffusion import GaussianConfig, SamplerConfig, make_process
from study.sample import sample

CLAIM = 2.0  # of a layer
PROCESS = make_process(GaussianConfig(schedule="cosine", variance="fixed_small"))


def forget(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, S4D):
            layer._tables.clear()


def sampling(network: Denoiser, batch: int, guidance: float, cached: bool) -> Callable[[], object]:
    sampler = SamplerConfig("ddim", "20", clip=True, guidance=guidance)
    before_every_step = (lambda: None) if cached else (lambda: forget(network))
    return lambda: sample(network, PROCESS, sampler, range(batch), check=before_every_step)


def layer_alone(layer: S4D, u: Tensor, cached: bool) -> Callable[[], object]:
    def steps() -> None:
        for _ in range(20):
            if not cached:
                forget(layer)
            layer(u)

    return steps


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def report(name: str, state: int, length: int, batch: int, sides: list[Callable[[], object]], rounds: int) -> None:
    times = np.array([[seconds(side) for side in sides] for _ in range(rounds + 1)])[1:]
    low, middle, high = np.quantile(times[:, 0] / times[:, 1], [0.25, 0.5, 0.75])
    anew, kept = 1e3 * np.median(times, axis=0)
    verdict = f"  below the claimed {CLAIM:g}x" if name == "layer" and middle < CLAIM else ""
    print(
        f"{name:16s} {state:4d} {length:6d} {batch:6d} {anew:10.1f} {kept:9.1f} {middle:6.2f}x"
        f"  {low:.2f}..{high:.2f}{verdict}",
        flush=True,
    )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    print(
        f"{'':16s} {'N':>4s} {'tokens':>6s} {'images':>6s} {'anew, ms':>10s} {'kept, ms':>9s} {'gain':>7s}  quartiles"
    )
    for state in (16, 64):
        for length in (256, 1024):
            side = math.isqrt(length)
            layer, u = S4D(64, state=state, direction="both").eval(), torch.randn(1, length, 64)
            report("layer", state, length, 1, [layer_alone(layer, u, cached) for cached in (False, True)], rounds)
            network = build("diffussm-tiny", size=side, state=state).eval()
            for name, batch, guidance in (("samples", 1, 1.0), ("guided samples", 1, 1.5), ("samples", 8, 1.0)):
                sides = [sampling(network, batch, guidance, cached) for cached in (False, True)]
                report(name, state, length, batch, sides, rounds)


if __name__ == "__main__":
    main()
