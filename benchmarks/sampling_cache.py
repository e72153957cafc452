"""What keeping S4D's spectra between the steps of sampling gains, as a ratio within one process.

    python benchmarks/sampling_cache.py [--rounds 3]

Three sides take turns, by CPU time on one thread. `kept`: the spectra are made once. `anew`: they are made at every
evaluation, by the fast form that `kept` makes them with once. `textbook`: at every evaluation the kernel is generated
as it is written, every power of every mode, and both directions are convolved one after the other. What keeping gains
is the ratio to a network without a cache; how large it is depends on what that network does instead, so both ratios
are given, and 2x is claimed at 256 tokens and more of the layer against `anew` and of everything against `textbook`.

`layer`: twenty evaluations of one S4D layer for one image. `samples`: twenty DDIM steps of a whole diffussm-tiny, from
noise to bytes, the first of which makes the tables on either side; guided ones ask for two outputs per step. Against
`anew` the gain is bounded by S4D's share of a step, which dense layers, norms and the growing batch make smaller, and
which falls the faster the tables are made. N = 16 is diffussm-tiny's state size, 64 that of every published size.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from models import Denoiser, build
from models.ssm.core import textbook
from models.ssm.s4d import S4D
from study.allocator import keep_freed_memory
from study.diffusion import GaussianConfig, SamplerConfig, make_process
from study.sample import sample

CLAIM = 2.0
PROCESS = make_process(GaussianConfig(schedule="cosine", variance="fixed_small"))


def forget(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, S4D):
            layer._tables.clear()


def written_out(layer: S4D, u: Tensor) -> Tensor:
    return textbook(u, layer.modes(), layer.D)


def sides_of(module: nn.Module, work: Callable[[Callable[[], None]], object]) -> list[Callable[[], object]]:
    """The same work without a cache in textbook form, without a cache, and with it.

    `work` is given what is to happen before every evaluation.
    """

    def in_textbook_form() -> None:
        with patch.object(S4D, "forward", written_out):
            work(lambda: None)

    return [in_textbook_form, lambda: work(lambda: forget(module)), lambda: work(lambda: None)]


def sampling(network: Denoiser, batch: int, guidance: float) -> list[Callable[[], object]]:
    sampler = SamplerConfig("ddim", "20", clip=True, guidance=guidance)
    return sides_of(network, lambda before: sample(network, PROCESS, sampler, range(batch), check=before))


def layer_alone(layer: S4D, u: Tensor) -> list[Callable[[], object]]:
    def steps(before: Callable[[], None]) -> None:
        for _ in range(20):
            before()
            layer(u)

    return sides_of(layer, steps)


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def report(name: str, state: int, length: int, batch: int, sides: list[Callable[[], object]], rounds: int) -> None:
    times = np.array([[seconds(side) for side in sides] for _ in range(rounds + 1)])[1:]
    written, anew = (np.quantile(times[:, side] / times[:, 2], [0.25, 0.5, 0.75]) for side in (0, 1))
    missed = [
        claim
        for claim, gain in ((f"{CLAIM:g}x textbook", written), (f"{CLAIM:g}x anew", anew))
        if gain[1] < CLAIM and (name == "layer" or "textbook" in claim)
    ]
    milliseconds = "".join(f"{1e3 * each:10.1f}" for each in np.median(times, axis=0))
    gains = "".join(f"{gain[1]:8.2f}x {f'{gain[0]:.2f}..{gain[2]:.2f}':14s}" for gain in (written, anew))
    verdict = f"  below the claimed {' and '.join(missed)}" if missed else ""
    print(f"{name:16s} {state:4d} {length:6d} {batch:6d} {milliseconds} {gains}{verdict}", flush=True)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    print(
        f"{'':16s} {'N':>4s} {'tokens':>6s} {'images':>6s} {'textbook':>10s}{'anew':>10s}{'kept, ms':>10s}"
        f"{'textbook/kept':>16s}{'anew/kept':>20s}"
    )
    for state in (16, 64):
        for length in (256, 1024):
            side = math.isqrt(length)
            layer, u = S4D(64, state=state, direction="both").eval(), torch.randn(1, length, 64)
            report("layer", state, length, 1, layer_alone(layer, u), rounds)
            network = build("diffussm-tiny", size=side, state=state).eval()
            for name, batch, guidance in (("samples", 1, 1.0), ("guided samples", 1, 1.5), ("samples", 8, 1.0)):
                report(name, state, length, batch, sampling(network, batch, guidance), rounds)


if __name__ == "__main__":
    main()
