"""Classifier-free guidance: the denoiser, its labels and a guidance strength as one function of (x, t)."""

from __future__ import annotations

import torch
from torch import Tensor

from models.denoiser import DenoiserConfig, require
from study.process.base import Denoise, Network, SamplerConfig


def guided(denoiser: Network, labels: Tensor | None, sampler: SamplerConfig) -> Denoise:
    """What a process samples with. Labels (B,), None for an unconditional backbone."""

    def conditional(x: Tensor, t: float) -> Tensor:
        return denoiser(x, torch.full((len(x),), t, device=x.device), labels)

    if sampler.guidance == 1:
        return conditional
    check_guidance(denoiser.config, sampler)
    assert labels is not None
    both_labels = torch.cat([labels, torch.full_like(labels, denoiser.config.classes)])

    def guided_within_interval(x: Tensor, t: float) -> Tensor:
        if not sampler.guidance_from <= t <= sampler.guidance_to:
            return conditional(x, t)
        times = torch.full((2 * len(x),), t, device=x.device)
        # In the precision of x: at a strong guidance bf16 would lose the difference.
        cond, uncond = denoiser(torch.cat([x, x]), times, both_labels).to(x.dtype).chunk(2)
        return combine(cond, uncond, sampler.guidance, guided_channels(sampler, x.shape[1]))

    return guided_within_interval


def check_guidance(config: DenoiserConfig, sampler: SamplerConfig) -> None:
    """Refuse guidance of a backbone that has not learned to do without labels."""
    valid = "1 for a backbone without a null class (classes > 0 and class_dropout > 0)"
    require(sampler.guidance == 1 or config.has_null_class, "guidance", sampler.guidance, valid)


def guided_channels(sampler: SamplerConfig, channels: int) -> int:
    """How many leading channels of the output are guided; variance channels never are."""
    return min(3, channels) if sampler.guidance_channels == "first3" else channels


def combine(cond: Tensor, uncond: Tensor, guidance: float, channels: int) -> Tensor:
    """Move the first `channels` of the conditional output away from the unconditional one."""
    moved = uncond[:, :channels] + guidance * (cond[:, :channels] - uncond[:, :channels])
    return torch.cat([moved, cond[:, channels:]], dim=1)
