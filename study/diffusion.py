"""The front door to processes: Gaussian diffusion and rectified flow behind one interface.

process = make_process(GaussianConfig())
t = process.sample_times(len(x0), generator)
x_t = process.add_noise(x0, t, noise)
loss = process.losses(denoiser(x_t, t, y), x0, x_t, t, noise).total.mean()
images = process.sample(guided(denoiser, y, sampler), noise, sampler, noise_source)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.denoiser import TIME_SCALE
from study.process.base import Denoise, Losses, NoiseSource, Process, SamplerConfig, per_image
from study.process.flow import FlowConfig, RectifiedFlow
from study.process.gaussian import Gaussian, GaussianConfig
from study.process.guidance import guided
from study.process.samplers import ddim, ddim_encode, ddpm, dpmpp_2m
from study.process.schedule import Schedule, kept_steps, log_snr_spaced

__all__ = [
    "Denoise",
    "FlowConfig",
    "GaussianConfig",
    "GaussianDiffusion",
    "Losses",
    "NoiseSource",
    "Process",
    "RectifiedFlow",
    "SamplerConfig",
    "guided",
    "make_process",
]

GAUSSIAN_SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpmpp_2m": dpmpp_2m}


class GaussianDiffusion(Process):
    """Trains on every step of its schedule; samples on those a spacing keeps."""

    samplers = tuple(GAUSSIAN_SAMPLERS)

    def __init__(self, config: GaussianConfig | None = None) -> None:
        self.config = config or GaussianConfig()
        self.gaussian = Gaussian(self.config, Schedule.named(self.config.schedule, self.config.steps))
        self.learns_variance = self.gaussian.learns_variance

    def sample_times(
        self, count: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        return self._times(torch.randint(self.config.steps, (count,), generator=generator, device=device))

    def times_at(self, quantiles: Tensor) -> Tensor:
        return self._times((quantiles * self.config.steps).floor())

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return self.gaussian.add_noise(x0, self._index(t), noise)

    def predict_x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        self.check_output(output, x_t)
        return self.gaussian.moments(output, x_t, self._index(t)).x0

    def losses(self, output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Losses:
        self.check_output(output, x_t)
        index = self._index(t)
        prediction, variance = self.gaussian.split(output, x_t)
        mse = per_image((prediction - self.gaussian.target(x0, index, noise)) ** 2)
        if self.config.loss in ("kl", "rescaled_kl"):
            vb = self.gaussian.bound(output, x0, x_t, index)
            return Losses(vb * (self.config.steps if self.config.loss == "rescaled_kl" else 1), mse, vb)
        if variance is None:
            return Losses(mse, mse)
        # Hybrid loss (improved DDPM eq. 16): the bound trains the variance only.
        vb = self.gaussian.bound(output, x0, x_t, index, trains_mean=False)
        weight = self.config.steps / 1000 if self.config.loss == "rescaled_mse" else 1.0
        return Losses(mse + weight * vb, mse, vb)

    def calls(self, sampler: SamplerConfig) -> int:
        return len(self._kept(sampler))

    def encode(self, denoise: Denoise, x0: Tensor, steps: str = "250") -> Tensor:
        """Deterministic DDIM backwards: images (B,C,H,W) to the noise they come from."""
        with torch.no_grad():
            return ddim_encode(self._keeping(kept_steps(steps, self.config.steps)), self._checked(denoise), x0)

    def _sample(self, denoise: Denoise, noise: Tensor, sampler: SamplerConfig, noise_source: NoiseSource) -> Tensor:
        run = GAUSSIAN_SAMPLERS[sampler.sampler]
        return run(self._keeping(self._kept(sampler)), self._checked(denoise), noise, sampler, noise_source)

    def _kept(self, sampler: SamplerConfig) -> list[int]:
        # DPM-Solver++ extrapolates in the log SNR: even strides there make 20 steps ten times as accurate.
        if sampler.sampler == "dpmpp_2m" and sampler.steps.isdecimal():
            return log_snr_spaced(self.gaussian.schedule.log_snr, int(sampler.steps))
        return kept_steps(sampler.steps, self.config.steps)

    def _keeping(self, steps: list[int]) -> Gaussian:
        return Gaussian(self.config, self.gaussian.schedule.keeping(steps))

    def _checked(self, denoise: Denoise) -> Denoise:
        def checked(x: Tensor, t: float) -> Tensor:
            output = denoise(x, t)
            self.check_output(output, x)
            return output

        return checked

    def _times(self, index: Tensor) -> Tensor:
        return index.float() * (TIME_SCALE / self.config.steps)

    def _index(self, t: Tensor) -> Tensor:
        return (t * (self.config.steps / TIME_SCALE)).round().long()


def make_process(config: Any) -> Process:
    """The process that a config describes."""
    if isinstance(config, GaussianConfig):
        return GaussianDiffusion(config)
    if isinstance(config, FlowConfig):
        return RectifiedFlow(config)
    raise ValueError(f"process={config!r} is not valid: must be a GaussianConfig or a FlowConfig")
