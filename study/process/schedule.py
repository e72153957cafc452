"""Noise schedules, respacing, and the float64 tables that Gaussian diffusion reads."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from models.denoiser import TIME_SCALE, require, require_choice

SCHEDULES = ("linear", "cosine", "ldm")


def betas(schedule: str, steps: int) -> Tensor:
    """(steps,) float64 noise variances, cleanest first."""
    require_choice("schedule", schedule, SCHEDULES)
    if schedule == "linear":  # DDPM's 1e-4..0.02, stretched so that any step count destroys as much
        scale = 1000 / steps
        return torch.linspace(1e-4 * scale, 0.02 * scale, steps, dtype=torch.float64)
    if schedule == "ldm":  # linear in the square root (latent-diffusion's "linear")
        return torch.linspace(0.0015**0.5, 0.0195**0.5, steps, dtype=torch.float64) ** 2
    return _cosine_betas(steps)


def _cosine_betas(steps: int, most: float = 0.999) -> Tensor:
    """Improved DDPM eq. 17, "squaredcos_cap_v2": cap the last, singular step."""

    def alpha_bar(fraction: float) -> float:
        return math.cos((fraction + 0.008) / 1.008 * math.pi / 2) ** 2

    values = [1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps) for i in range(steps)]
    return torch.tensor(values, dtype=torch.float64).clamp(max=most)


def kept_steps(spec: str, total: int) -> list[int]:
    """Which of `total` steps a spacing keeps: "250" evenly, "ddim50" by an integer stride, "10,15,20" per section."""
    if match := re.fullmatch(r"ddim(\d+)", spec):
        return _strided(int(match[1]), total)
    require(
        bool(re.fullmatch(r"\d+(,\d+)*", spec)), "steps", spec, "a count (250), ddim<count>, or sections (10,15,20)"
    )
    counts = [int(part) for part in spec.split(",")]
    section, longer = divmod(total, len(counts))
    kept: list[int] = []
    start = 0
    for i, count in enumerate(counts):
        size = section + (i < longer)
        require(1 <= count <= size, "steps", spec, f"1 to {size} steps in section {i + 1} of {len(counts)}")
        kept += _evenly(start, size, count)
        start += size
    return kept


def _evenly(start: int, size: int, count: int) -> list[int]:
    """`count` of the `size` steps from `start`, both ends included."""
    stride = (size - 1) / (count - 1) if count > 1 else 1.0
    kept, position = [], 0.0
    for _ in range(count):  # summed, not multiplied, and rounded half to even: as in the reference
        kept.append(start + round(position))
        position += stride
    return kept


def _strided(count: int, total: int) -> list[int]:
    possible = {len(range(0, total, stride)): stride for stride in range(total - 1, 0, -1)}
    if count not in possible:
        near = sorted(possible, key=lambda n: abs(n - count))[:2]
        valid = " or ".join(f"ddim{n}" for n in sorted(near))
        require(False, "steps", f"ddim{count}", f"reachable by an integer stride over {total} steps, such as {valid}")
    return list(range(0, total, possible[count]))


def log_snr_spaced(log_snr: Tensor, count: int) -> list[int]:
    """`count` of the steps whose log SNRs (T,), cleanest first, are as evenly spaced as their grid allows."""
    total = len(log_snr)
    require(1 <= count <= total, "steps", str(count), f"1 to {total} steps")
    goals = torch.linspace(log_snr[-1], log_snr[0], count, dtype=torch.float64)
    kept: list[int] = []
    for i, goal in enumerate(goals):
        nearest = int((log_snr - goal).abs().argmin())
        below = kept[-1] - 1 if kept else total - 1
        kept.append(max(min(nearest, below), count - 1 - i))  # distinct, and room for those to come
    return kept[::-1]


class Schedule:
    """Tables of one sequence of steps, (T,) float64 on the CPU, cleanest first; `times` is what the network is told."""

    def __init__(self, betas: Tensor, times: Tensor) -> None:
        abar = torch.cumprod(1 - betas, dim=0)
        one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        previous = torch.cat([one, abar[:-1]])
        self.betas, self.times = betas, times
        self.alphas_cumprod = abar
        self.alphas_cumprod_prev = previous
        self.alphas_cumprod_next = torch.cat([abar[1:], zero])
        # q(x_{t-1} | x_t, x0), DDPM eq. 6-7. Its variance is 0 at the first step, so the log takes the second's.
        self.posterior_variance = betas * (1 - previous) / (1 - abar)
        clipped = torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]]) if len(betas) > 1 else betas
        self.posterior_log_variance_clipped = clipped.log()
        self.posterior_mean_coef1 = betas * previous.sqrt() / (1 - abar)
        self.posterior_mean_coef2 = (1 - previous) * (1 - betas).sqrt() / (1 - abar)
        self.large_log_variance = torch.cat([clipped[:1], betas[1:]]).log()
        self.log_betas = betas.log()
        self.signal = abar.sqrt()  # alpha_t: x_t = signal x0 + sigma noise
        self.sigma = (1 - abar).sqrt()
        self.log_snr = (self.signal / self.sigma).log()  # lambda_t of DPM-Solver
        self._copies: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    @classmethod
    def named(cls, schedule: str, steps: int) -> Schedule:
        return cls(betas(schedule, steps), torch.arange(steps, dtype=torch.float64) * TIME_SCALE / steps)

    def __len__(self) -> int:
        return len(self.betas)

    def keeping(self, steps: list[int]) -> Schedule:
        """Only some of the steps, each covering those it skips; the network still hears their own times."""
        kept = torch.tensor(steps)
        abar = self.alphas_cumprod[kept]
        before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
        return Schedule(1 - abar / before, self.times[kept])

    def at(self, table: str, index: int | Tensor, like: Tensor) -> Tensor:
        """One step's entry as a scalar, or (B,) steps' entries as (B,1,1,1) in the precision of `like`."""
        values: Tensor = getattr(self, table)
        if isinstance(index, int):
            return values[index]
        key = (table, like.device, like.dtype)
        if key not in self._copies:  # copied once: an accelerator must not wait for the host every step
            self._copies[key] = values.to(like.device, like.dtype)
        return self._copies[key][index][:, None, None, None]
