"""Gaussian diffusion, one step at a time: what the network's output means, and the variational bound.

Steps are indices into a `Schedule`: an int for a whole batch, or (B,) integers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.denoiser import require, require_choice
from study.process.base import per_image
from study.process.schedule import SCHEDULES, Schedule

PREDICTIONS = ("epsilon", "x0", "v")
VARIANCES = ("fixed_small", "fixed_large", "learned_range")
LOSSES = ("mse", "rescaled_mse", "kl", "rescaled_kl")


@dataclass(frozen=True)
class GaussianConfig:
    """The defaults are DiT's. `loss`: with a learned variance, mse means MSE + bound (the hybrid loss)."""

    schedule: str = "linear"
    steps: int = 1000
    predict: str = "epsilon"
    variance: str = "learned_range"
    loss: str = "mse"

    def __post_init__(self) -> None:
        require_choice("schedule", self.schedule, SCHEDULES)
        least = 21 if self.schedule == "linear" else 2  # the stretched linear schedule ends at beta = 20 / steps
        require(self.steps >= least, "steps", self.steps, f"{least} or more for schedule={self.schedule}")
        require_choice("predict", self.predict, PREDICTIONS)
        require_choice("variance", self.variance, VARIANCES)
        require_choice("loss", self.loss, LOSSES)


@dataclass(frozen=True)
class Moments:
    """p(x_{t-1} | x_t) as the network sees it, and the clean image behind it."""

    mean: Tensor
    log_variance: Tensor  # broadcasts against mean
    x0: Tensor


class Gaussian:
    """How a network's output is read, on one schedule: `config` says what it predicts."""

    def __init__(self, config: GaussianConfig, schedule: Schedule) -> None:
        self.config, self.schedule = config, schedule

    @property
    def learns_variance(self) -> bool:
        return self.config.variance == "learned_range"

    def add_noise(self, x0: Tensor, index: int | Tensor, noise: Tensor) -> Tensor:
        at = self.schedule.at
        return at("signal", index, x0) * x0 + at("sigma", index, x0) * noise

    def target(self, x0: Tensor, index: int | Tensor, noise: Tensor) -> Tensor:
        """What the network should predict. v = signal noise - sigma x0 (Salimans & Ho, 2022)."""
        if self.config.predict == "epsilon":
            return noise
        if self.config.predict == "x0":
            return x0
        at = self.schedule.at
        return at("signal", index, x0) * noise - at("sigma", index, x0) * x0

    def predicted_x0(self, prediction: Tensor, x_t: Tensor, index: int | Tensor) -> Tensor:
        """The inverse of `target` given x_t."""
        if self.config.predict == "x0":
            return prediction
        signal, sigma = self.schedule.at("signal", index, x_t), self.schedule.at("sigma", index, x_t)
        if self.config.predict == "epsilon":
            return (x_t - sigma * prediction) / signal
        return signal * x_t - sigma * prediction

    def predicted_epsilon(self, x0: Tensor, x_t: Tensor, index: int | Tensor) -> Tensor:
        """The noise between x0 and x_t."""
        return (x_t - self.schedule.at("signal", index, x_t) * x0) / self.schedule.at("sigma", index, x_t)

    def posterior(self, x0: Tensor, x_t: Tensor, index: int | Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(x_{t-1} | x_t, x0), DDPM eq. 7."""
        at = self.schedule.at
        mean = at("posterior_mean_coef1", index, x_t) * x0 + at("posterior_mean_coef2", index, x_t) * x_t
        return mean, at("posterior_log_variance_clipped", index, x_t)

    def moments(self, output: Tensor, x_t: Tensor, index: int | Tensor, clip: bool = False) -> Moments:
        """What the network's output says about the step."""
        return self._moments(*self.split(output, x_t), x_t, index, clip)

    def _moments(
        self, prediction: Tensor, variance: Tensor | None, x_t: Tensor, index: int | Tensor, clip: bool
    ) -> Moments:
        x0 = self.predicted_x0(prediction, x_t, index)
        if clip:
            x0 = x0.clamp(-1, 1)
        mean, _ = self.posterior(x0, x_t, index)
        return Moments(mean, self._log_variance(variance, x_t, index), x0)

    def split(self, output: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
        """Prediction and, where it is learned, the raw variance channels, in the precision of x_t."""
        output = output.to(x_t.dtype)
        if not self.learns_variance:
            return output, None
        prediction, variance = output.chunk(2, dim=1)
        return prediction, variance

    def _log_variance(self, variance: Tensor | None, x_t: Tensor, index: int | Tensor) -> Tensor:
        small = self.schedule.at("posterior_log_variance_clipped", index, x_t)
        if variance is None:
            fixed_small = self.config.variance == "fixed_small"
            return small if fixed_small else self.schedule.at("large_log_variance", index, x_t)
        share = (variance + 1) / 2  # interpolate in the log between the two bounds (improved DDPM eq. 15)
        return share * self.schedule.at("log_betas", index, x_t) + (1 - share) * small

    def bound(self, output: Tensor, x0: Tensor, x_t: Tensor, index: Tensor, trains_mean: bool = True) -> Tensor:
        """(B,) one step's term of the variational bound, bits per dimension: KL, or at step 0 the likelihood of x0.

        Without `trains_mean` its gradient reaches only the variance.
        """
        prediction, variance = self.split(output, x_t)
        prediction = prediction if trains_mean else prediction.detach()
        true_mean, true_log_variance = self.posterior(x0, x_t, index)
        model = self._moments(prediction, variance, x_t, index, clip=False)
        kl = per_image(gaussian_kl(true_mean, true_log_variance, model.mean, model.log_variance))
        first = index == 0
        if first.device.type == "cpu" and not first.any():  # an accelerator would have to wait for the answer
            return kl / math.log(2)
        nll = -per_image(pixel_log_likelihood(x0, model.mean, model.log_variance / 2))
        return torch.where(first, nll, kl) / math.log(2)

    def prior_bits(self, x0: Tensor) -> Tensor:
        """(B,) the bound's last term: what the most noised x0 still tells apart from pure noise, bits per dimension."""
        mean = self.schedule.signal[-1] * x0
        log_variance = (1 - self.schedule.alphas_cumprod[-1]).log().to(x0)
        nothing = torch.zeros((), dtype=x0.dtype, device=x0.device)
        return per_image(gaussian_kl(mean, log_variance, nothing, nothing)) / math.log(2)


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N1 || N2) per element, in nats."""
    gap = (mean1 - mean2) ** 2 * torch.exp(-log_variance2)
    return 0.5 * (log_variance2 - log_variance1 + torch.exp(log_variance1 - log_variance2) - 1 + gap)


def pixel_log_likelihood(x0: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log mass that N(mean, scale²) gives to x0's bin among 256 levels of [-1, 1]; the end bins are open."""
    upper = _normal_cdf((x0 - mean + 1 / 255) * torch.exp(-log_scale))
    lower = _normal_cdf((x0 - mean - 1 / 255) * torch.exp(-log_scale))
    lower = torch.where(x0 < -0.999, 0.0, lower)
    upper = torch.where(x0 > 0.999, 1.0, upper)
    return (upper - lower).clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation (as in GELU) that published bounds were computed with."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
