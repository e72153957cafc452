"""What launching costs: small networks sampled and trained with every kernel launched, and replayed as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from models import Denoiser, build
from study.bench.workload import inputs, nudged
from study.captured import captured
from study.compose import resolve
from study.diffusion import GaussianConfig, SamplerConfig, guided, make_process
from study.process.base import Network
from study.train import Trainer

LIMIT = 1e-3  # of a sample: the same kernels, unless a library picks others for another stream; a stale input makes 1
MOVED = 1e-2  # of how far weights moved: AdamW's first steps make much of little
CHECKED = 5  # steps: two launched, of which the second is also captured, and three replayed
Calls = dict[str, Callable[[], object]]


@torch.no_grad()
def drawn(network: Network, x: Tensor, y: Tensor | None, steps: int) -> Tensor:
    """Samples of noise x (B,C,H,W) and labels, guided."""
    sampler = SamplerConfig("ddim", str(steps), guidance=2.0)
    process = make_process(GaussianConfig(variance="fixed_small"))
    return process.sample(guided(network, y, sampler), x, sampler, torch.zeros_like)  # type: ignore[arg-type]


def small(name: str, device: torch.device) -> Denoiser:
    torch.manual_seed(0)
    return nudged(build(name, learn_sigma=False)).to(device).eval()


def sampling(name: str, batch: int, steps: int, device: torch.device) -> tuple[Calls, dict[str, str]]:
    """Both ways of drawing samples, and whether they give the same."""
    network = small(name, device)
    x, _, y = inputs(network.config, batch, device)
    replayed = captured(network, device)
    calls: Calls = {
        "launched": partial(drawn, network, x, y, steps),
        "replayed": partial(drawn, replayed, x, y, steps),
    }
    expected = drawn(network, x, y, steps)
    error = max(((drawn(replayed, x, y, steps) - expected).norm() / expected.norm()).item() for _ in range(2))
    return calls, judged(error, LIMIT)


def judged(error: float, limit: float) -> dict[str, str]:
    return {"error": f"{error:.1e}", "verdict": "within" if error <= limit else f"above {limit:.0e}"}


def training(name: str, ways: tuple[str, ...], device: torch.device) -> tuple[Calls, dict[str, dict[str, str]]]:
    """Whole steps as a run takes them: draws, loss, gradients, optimiser, averages; `ways` to compile.

    And of whole steps replayed, whether weights move as they do launched.
    """
    trainers = {how: Trainer(resolve([f"backbone={name}", f"machine.compile={how}"]), device) for how in ways}
    calls: Calls = {labelled(how): trainer.step for how, trainer in trainers.items()}
    if "graph" not in ways:
        return calls, {}
    return calls, {labelled("graph"): judged(gap(trainers["false"], trainers["graph"]), MOVED)}


def labelled(how: str) -> str:
    return f"machine.compile={how}"


def gap(launched: Trainer, replayed: Trainer) -> float:
    """Between the weights after a few steps, as a share of the way that they went."""
    begun = weights(launched)
    for trainer in (launched, replayed):
        for _ in range(CHECKED):
            trainer.step()
    there = weights(launched)
    return ((weights(replayed) - there).norm() / (there - begun).norm()).item()


def weights(trainer: Trainer) -> Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in trainer.parameters])
