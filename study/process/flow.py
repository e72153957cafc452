"""Rectified flow: straight lines x_t = (1 - s) x0 + s noise, s = t / 1000; the network predicts dx/ds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from models.denoiser import TIME_SCALE, require, require_choice
from study.process.base import Denoise, Losses, NoiseSource, Process, SamplerConfig, per_image


@dataclass(frozen=True)
class FlowConfig:
    """`times`: training times uniform, or logit_normal (Esser et al., 2024), denser in the middle."""

    times: str = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0

    def __post_init__(self) -> None:
        require_choice("times", self.times, ("uniform", "logit_normal"))
        require(math.isfinite(self.logit_mean), "logit_mean", self.logit_mean, "a finite number")
        require(0 < self.logit_std < math.inf, "logit_std", self.logit_std, "above 0")


class RectifiedFlow(Process):
    samplers = ("euler", "heun")

    def __init__(self, config: FlowConfig | None = None) -> None:
        self.config = config or FlowConfig()

    def sample_times(
        self, count: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        if self.config.times == "uniform":
            return TIME_SCALE * torch.rand(count, generator=generator, device=device)
        logits = torch.randn(count, generator=generator, device=device)
        return TIME_SCALE * torch.sigmoid(self.config.logit_mean + self.config.logit_std * logits)

    def times_at(self, quantiles: Tensor) -> Tensor:
        return (TIME_SCALE * quantiles).float()

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        s = _share(t, x0)
        return (1 - s) * x0 + s * noise

    def losses(self, output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Losses:
        self.check_output(output, x_t)
        mse = per_image((output.to(x0.dtype) - (noise - x0)) ** 2)
        return Losses(total=mse, mse=mse)

    def predict_x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        self.check_output(output, x_t)
        return x_t - _share(t, x_t) * output.to(x_t.dtype)

    def calls(self, sampler: SamplerConfig) -> int:
        steps = sampler.steps
        require(steps.isdecimal() and int(steps) > 0, "steps", steps, "a positive count, such as 50, for a flow")
        return int(steps) * (2 if sampler.sampler == "heun" else 1)

    def _sample(self, denoise: Denoise, noise: Tensor, sampler: SamplerConfig, noise_source: NoiseSource) -> Tensor:
        steps, x = int(sampler.steps), noise
        times = [TIME_SCALE * step / steps for step in range(steps, -1, -1)]  # exact where a guidance interval may end
        for t, after in pairwise(times):
            velocity = self._velocity(denoise, x, t, sampler.clip)
            arrival = x - velocity / steps
            if sampler.sampler == "heun":
                there = self._velocity(denoise, arrival, after, sampler.clip)
                arrival = x - (velocity + there) / (2 * steps)
            x = arrival
        return x

    def _velocity(self, denoise: Denoise, x: Tensor, t: float, clip: bool) -> Tensor:
        """dx/ds; clipping acts on the x0 it leads to, x - s velocity."""
        output = denoise(x, t)
        self.check_output(output, x)
        velocity = output.to(x.dtype)
        if not clip or t == 0:
            return velocity
        s = t / TIME_SCALE
        return (x - (x - s * velocity).clamp(-1, 1)) / s


def _share(t: Tensor, x: Tensor) -> Tensor:
    """Noise share s (B,1,1,1) of times t (B,)."""
    return (t.to(x.dtype) / TIME_SCALE)[:, None, None, None]
