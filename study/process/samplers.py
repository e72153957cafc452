"""From noise to images through Gaussian diffusion: DDPM, DDIM and DPM-Solver++(2M)."""

from __future__ import annotations

import torch
from torch import Tensor

from study.process.base import Denoise, NoiseSource, SamplerConfig
from study.process.gaussian import Gaussian, Moments


def ddpm(gaussian: Gaussian, denoise: Denoise, x: Tensor, sampler: SamplerConfig, noise_source: NoiseSource) -> Tensor:
    """Ancestral sampling: draw from p(x_{t-1} | x_t) with the process's own variance."""
    for step, index in enumerate(_downwards(gaussian)):
        moments = _moments(gaussian, denoise, x, index, sampler.clip)
        x = moments.mean
        if index > 0:
            x = x + torch.exp(moments.log_variance / 2) * noise_source(step)
    return x


def ddim(gaussian: Gaussian, denoise: Denoise, x: Tensor, sampler: SamplerConfig, noise_source: NoiseSource) -> Tensor:
    """DDIM eq. 12; with eta=0 Euler's method on the probability flow."""
    for step, index in enumerate(_downwards(gaussian)):
        x0 = _moments(gaussian, denoise, x, index, sampler.clip).x0
        noise = noise_source(step) if sampler.eta > 0 and index > 0 else None
        x = ddim_step(gaussian, x, x0, index, sampler.eta, noise)
    return x


def ddim_step(gaussian: Gaussian, x: Tensor, x0: Tensor, index: int, eta: float, noise: Tensor | None) -> Tensor:
    """x_{t-1} from x_t and the estimate of x0, clipped or not; sigma (DDIM eq. 16) scales with eta."""
    epsilon = gaussian.predicted_epsilon(x0, x, index)
    abar = gaussian.schedule.alphas_cumprod[index]
    before = gaussian.schedule.alphas_cumprod_prev[index]
    sigma = eta * ((1 - before) / (1 - abar)).sqrt() * (1 - abar / before).sqrt()
    x = before.sqrt() * x0 + (1 - before - sigma**2).clamp(min=0).sqrt() * epsilon
    return x if noise is None else x + sigma * noise


def ddim_encode(gaussian: Gaussian, denoise: Denoise, x0: Tensor) -> Tensor:
    """DDIM run backwards: the noise from which deterministic DDIM leads to x0, up to discretisation."""
    x = x0
    for index in range(len(gaussian.schedule)):
        x = ddim_reverse_step(gaussian, x, _moments(gaussian, denoise, x, index, clip=False).x0, index)
    return x


def ddim_reverse_step(gaussian: Gaussian, x: Tensor, x0: Tensor, index: int) -> Tensor:
    """x_{t+1} from x_t and the estimate of x0."""
    after = gaussian.schedule.alphas_cumprod_next[index]
    return after.sqrt() * x0 + (1 - after).sqrt() * gaussian.predicted_epsilon(x0, x, index)


def dpmpp_2m(
    gaussian: Gaussian, denoise: Denoise, x: Tensor, sampler: SamplerConfig, noise_source: NoiseSource
) -> Tensor:
    """DPM-Solver++(2M), algorithm 2: exponential integrator in the log SNR, x0 extrapolated from two steps."""
    schedule = gaussian.schedule
    x0_before, stride_before = None, None
    for index in _downwards(gaussian):
        x0 = _moments(gaussian, denoise, x, index, sampler.clip).x0
        if index == 0:
            return x0  # the remaining stride is infinite: no extrapolation
        stride = schedule.log_snr[index - 1] - schedule.log_snr[index]
        estimate = x0
        if x0_before is not None and stride_before is not None:
            estimate = x0 + (x0 - x0_before) * (stride / stride_before / 2)
        shrink = schedule.sigma[index - 1] / schedule.sigma[index]
        x = shrink * x - schedule.signal[index - 1] * torch.expm1(-stride) * estimate
        x0_before, stride_before = x0, stride
    raise AssertionError("a schedule has at least one step")


def _downwards(gaussian: Gaussian) -> range:
    return range(len(gaussian.schedule) - 1, -1, -1)


def _moments(gaussian: Gaussian, denoise: Denoise, x: Tensor, index: int, clip: bool) -> Moments:
    return gaussian.moments(denoise(x, float(gaussian.schedule.times[index])), x, index, clip)
