"""S4D: a diagonal state-space layer over sequences (Gu et al. 2022), in one or both directions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from models.denoiser import require, require_choice
from models.layers.derivatives import refuse_tangents
from models.macs import Macs
from models.ssm import forms
from models.ssm.cache import TableCache
from models.ssm.core import model_macs, s4d, s4d_apply, s4d_tables
from models.ssm.forms import Form
from models.ssm.kernel import Modes, discretise

INITS = ("lin", "inv", "real")
DIRECTIONS = ("both", "forward")
JOINS = ("concat", "sum")
DISCRETISATIONS = ("zoh", "bilinear")


class S4D(nn.Module):
    """(B, L, H) -> (B, L, streams * H): one linear state space per channel and direction, D skip included.

    No activation and no mixing of channels. Both directions joined by `concat` are two streams of
    channels [forward, backward]; otherwise there is one.
    """

    no_weight_decay = ("log_dt", "log_A_real", "A_imag")

    def __init__(
        self,
        width: int,
        state: int = 64,
        init: str = "lin",
        direction: str = "both",
        join: str = "concat",
        discretisation: str = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        lr_scale: float = 1.0,
    ) -> None:
        super().__init__()
        require(width > 0, "width", width, "a positive integer")
        require(state > 0 and state % 2 == 0, "state", state, "a positive even integer (conjugate pairs)")
        require_choice("init", init, INITS)
        require_choice("direction", direction, DIRECTIONS)
        require_choice("join", join, JOINS)
        require_choice("discretisation", discretisation, DISCRETISATIONS)
        require(0 < dt_min <= dt_max, "dt_min", dt_min, f"above 0 and at most dt_max={dt_max!r}")
        self.width, self.state, self.direction, self.join = width, state, direction, join
        self.discretisation, self.lr_scale = discretisation, lr_scale
        directions = 2 if direction == "both" else 1
        self.streams = streams(direction, join)
        log_low, log_high = math.log(dt_min), math.log(dt_max)
        self.log_dt = nn.Parameter(torch.empty(directions, width).uniform_(log_low, log_high))
        real, imaginary = initial_eigenvalues(init, state)
        shape = (directions, width, state // 2)
        self.log_A_real = nn.Parameter(torch.empty(shape).copy_((-real).log()))
        self.A_imag = nn.Parameter(torch.empty(shape).copy_(imaginary))
        self.C = nn.Parameter(torch.empty(*shape, 2).normal_(std=0.5**0.5))
        self.D = nn.Parameter(torch.randn(self.streams, width))
        self._tables = TableCache()

    def forward(self, u: Tensor) -> Tensor:
        require(u.ndim == 3 and u.shape[-1] == self.width, "u.shape", tuple(u.shape), f"(batch, L, {self.width})")
        require(u.shape[1] > 0, "u.shape", tuple(u.shape), "a sequence of at least one token")
        require(u.is_floating_point(), "u.dtype", u.dtype, "a floating-point dtype")
        if self._frozen(u):
            refuse_tangents("ssm::s4d_apply", u, *self.parameters())
            form = forms.choose(u, self.state // 2)
            return s4d_apply(u, self._cached_tables(u, form), form.name)
        if not torch.compiler.is_compiling():
            self._tables.clear()  # training goes on: a fused optimiser moves no version counter
        return s4d(u, *self.modes(), _full(self.D))

    def modes(self) -> Modes:
        """Discretised in float32 at least: a bf16 phase is noise after a few steps."""
        log_dt, log_A_real, A_imag, C = (_full(p) for p in (self.log_dt, self.log_A_real, self.A_imag, self.C))
        return discretise(log_dt, (-log_A_real.exp(), A_imag), (C[..., 0], C[..., 1]), self.discretisation)

    def _frozen(self, u: Tensor) -> bool:
        """Evaluating, without gradients or tracing: tables may outlive the call."""
        if self.training or torch.compiler.is_compiling() or type(u) is not Tensor or u.is_meta:
            return False
        return not (torch.is_grad_enabled() and any(x.requires_grad for x in (u, *self.parameters())))

    def _cached_tables(self, u: Tensor, form: Form) -> list[Tensor]:
        wide = u.dtype == torch.float64

        def make() -> list[Tensor]:
            parts = (*self.modes(), _full(self.D))
            return s4d_tables(*(part.double() if wide else part for part in parts), u.shape[1], form.name)

        return self._tables.get((u.shape[1], wide, form), tuple(self.parameters()), make)

    def train(self, mode: bool = True) -> Self:
        self._tables.clear()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._tables.clear()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], *args: Any) -> None:
        self._tables.clear()
        super()._load_from_state_dict(state_dict, *args)

    def extra_repr(self) -> str:
        return f"{self.width}, state={self.state}, direction={self.direction!r}, join={self.join!r}"


def streams(direction: str, join: str) -> int:
    """How many groups of H channels come out."""
    return 2 if direction == "both" and join == "concat" else 1


def initial_eigenvalues(init: str, state: int) -> tuple[Tensor, Tensor]:
    """Real and imaginary parts of A's upper half, (state / 2,) each, on the CPU (S4D, eq. 9; S4D-Real, sec. 4)."""
    k = torch.arange(state // 2, dtype=torch.float64, device="cpu")
    if init == "real":
        real, imaginary = -(k + 1), torch.zeros_like(k)
    else:
        real = torch.full_like(k, -0.5)
        # "inv" follows the full state size, conjugates included.
        imaginary = math.pi * k if init == "lin" else state / math.pi * (state / (2 * k + 1) - 1)
    return real.to(torch.get_default_dtype()), imaginary.to(torch.get_default_dtype())


def s4d_macs(length: int, width: int, state: int, direction: str = "both", join: str = "concat") -> Macs:
    """Model MACs of one image: transforms and spectra in `fft`, generation in `kernel`, the D skip elementwise."""
    directions = 2 if direction == "both" else 1
    return model_macs(length, width, state // 2, directions, streams(direction, join))


def _full(p: Tensor) -> Tensor:
    return p if p.dtype == torch.float64 else p.float()
