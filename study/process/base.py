"""What every process can do, so that training and sampling never ask which one it is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from models.denoiser import TIME_SCALE, DenoiserConfig, require, require_choice

Denoise = Callable[[Tensor, float], Tensor]
"""The network at one time for the whole batch: x (B,C,H,W), t in 0..1000 -> (B, C or 2C, H, W)."""


class Network(Protocol):
    """What samples are drawn with: a denoiser, or whatever answers as one."""

    @property
    def config(self) -> DenoiserConfig: ...

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None, /) -> Tensor: ...


NoiseSource = Callable[[int], Tensor]
"""Gaussian noise (B,C,H,W) of the n-th executed step; it decides how noise is seeded."""

SAMPLERS = ("ddpm", "ddim", "dpmpp_2m", "euler", "heun")


@dataclass(frozen=True)
class SamplerConfig:
    """How noise becomes images.

    `steps`: a count such as "250", spread evenly in time (for dpmpp_2m in the log SNR); for Gaussian
    diffusion also "ddim50", an integer stride from t=0, or "10,15,20", a count per section of time.
    """

    sampler: str = "ddpm"
    steps: str = "250"
    eta: float = 0.0  # ddim only: 0 deterministic, 1 as noisy as ddpm
    clip: bool = False  # clamp every estimate of x0 to [-1, 1]: for pixels, not for latents
    guidance: float = 1.0  # 1: conditional; above: conditional + (guidance - 1) (conditional - unconditional)
    guidance_channels: str = "first3"  # as published with DiT; "all" guides every channel of x
    guidance_from: float = 0.0  # guide only at times within [guidance_from, guidance_to]
    guidance_to: float = float(TIME_SCALE)

    def __post_init__(self) -> None:
        require_choice("sampler", self.sampler, SAMPLERS)
        require(bool(self.steps), "steps", self.steps, "a step count or spacing such as 250, ddim50 or 10,15,20")
        require(0 <= self.eta < math.inf, "eta", self.eta, "0 or more")
        require(self.eta == 0 or self.sampler == "ddim", "eta", self.eta, f"0 for sampler={self.sampler}")
        require(0 <= self.guidance < math.inf, "guidance", self.guidance, "0 or more (1: no guidance)")
        require_choice("guidance_channels", self.guidance_channels, ("first3", "all"))
        bounds = (self.guidance_from, self.guidance_to)
        require(
            0 <= bounds[0] <= bounds[1] <= TIME_SCALE,
            "guidance_from, guidance_to",
            bounds,
            f"ordered, within [0, {TIME_SCALE}]",
        )


@dataclass(frozen=True)
class Losses:
    """Per image (B,): `total` is what to minimise; `mse` on the predicted quantity; `vb` in bits per dimension."""

    total: Tensor
    mse: Tensor
    vb: Tensor | None = None


class Process(ABC):
    """Between data x0 and noise. Times t are what the network is told: float32, 0 (clean) to 1000 (noise)."""

    samplers: ClassVar[tuple[str, ...]]
    learns_variance: bool = False
    config: Any  # the frozen dataclass it was made from

    @abstractmethod
    def sample_times(
        self, count: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """(count,) training times; a generator lives on `device`."""

    @abstractmethod
    def times_at(self, quantiles: Tensor) -> Tensor:
        """The times at these fractions, in (0, 1), of the way from clean to noise."""

    @abstractmethod
    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t (B,C,H,W) given x0 and standard normal noise."""

    @abstractmethod
    def losses(self, output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Losses:
        """What the network's output (B, C or 2C, H, W) at (x_t, t) costs."""

    @abstractmethod
    def predict_x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean image that the output at (x_t, t) implies."""

    @abstractmethod
    def calls(self, sampler: SamplerConfig) -> int:
        """How often sampling evaluates the network (a guided evaluation counts once)."""

    @abstractmethod
    def _sample(self, denoise: Denoise, noise: Tensor, sampler: SamplerConfig, noise_source: NoiseSource) -> Tensor:
        """`sample` after its checks."""

    @torch.no_grad()
    def sample(self, denoise: Denoise, noise: Tensor, sampler: SamplerConfig, noise_source: NoiseSource) -> Tensor:
        """Turn noise (B,C,H,W) into images; all randomness beyond it comes from `noise_source`."""
        self.check_sampler(sampler)
        return self._sample(denoise, noise, sampler, noise_source)

    def bin_times(self, bins: int, per_bin: int) -> Tensor:
        """(bins, per_bin) fixed times that cover the process evenly, for a validation loss per bin."""
        require(bins > 0, "bins", bins, "1 or more")
        require(per_bin > 0, "per_bin", per_bin, "1 or more")
        middles = (torch.arange(bins * per_bin, dtype=torch.float64) + 0.5) / (bins * per_bin)
        return self.times_at(middles).reshape(bins, per_bin)

    def check_sampler(self, sampler: SamplerConfig) -> None:
        """Refuse a sampler that cannot run this process, or steps that it cannot take."""
        require_choice("sampler", sampler.sampler, self.samplers)
        self.calls(sampler)

    def check_denoiser(self, learn_sigma: bool) -> None:
        """Refuse a backbone whose output channels do not fit."""
        need = "true: variance=learned_range needs" if self.learns_variance else "false: only learned_range has"
        require(learn_sigma == self.learns_variance, "learn_sigma", learn_sigma, f"{need} a predicted variance")

    def check_output(self, output: Tensor, x: Tensor) -> None:
        """Refuse a network output that does not have the channels this process reads."""
        channels = x.shape[1] * (2 if self.learns_variance else 1)
        expected = (x.shape[0], channels, *x.shape[2:])
        reason = "with" if self.learns_variance else "without"
        require(
            tuple(output.shape) == expected, "output.shape", tuple(output.shape), f"{expected} ({reason} a variance)"
        )


def per_image(x: Tensor) -> Tensor:
    """Mean over all but the batch: (B, ...) -> (B,)."""
    return x.flatten(1).mean(dim=1)
