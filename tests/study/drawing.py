"""A small network whose samples tests draw."""

from __future__ import annotations

from typing import Any

import torch

from models import Denoiser
from models.dit import DiT, DiTConfig
from study.diffusion import GaussianConfig, Process, SamplerConfig, make_process
from study.sample import (
    Samples,
    sample,
)

CONFIG = DiTConfig(size=(8, 8), P=4, channels=1, width=16, depth=1, heads=2, classes=5, learn_sigma=False)

PROCESS = make_process(GaussianConfig(variance="fixed_small"))

SAMPLER = SamplerConfig("ddpm", "4", clip=True, guidance=1.5)


def network(config: DiTConfig = CONFIG) -> DiT:
    torch.manual_seed(0)
    model = DiT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def draw(indices: range, denoiser: Denoiser | None = None, **options: Any) -> Samples:
    process: Process = options.pop("process", PROCESS)
    return sample(denoiser or network(), process, options.pop("sampler", SAMPLER), indices, **options)


def assert_same(a: Samples, b: Samples) -> None:
    """Bytes may differ by one level: a matrix product rounds differently at another batch size."""
    assert (a.images.int() - b.images.int()).abs().max() <= 1
    assert (a.images == b.images).float().mean() > 0.99
    assert a.labels is not None
    assert b.labels is not None
    assert torch.equal(a.labels, b.labels)
