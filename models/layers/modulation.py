"""Adaptive LayerNorm: the condition shifts and scales what the norm has flattened."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers.devices import triton_runs_on

WIDEST = 8192
"""Widest row that one program of the fused kernels holds."""


def norm_modulate(x: Tensor, norm: nn.LayerNorm, shift: Tensor, scale: Tensor) -> Tensor:
    """The norm (no parameters of its own) of x (B, L, D), modulated: one kernel on a GPU."""
    if _in_one_kernel(x):
        from models.layers import glue  # imports Triton

        assert not list(norm.parameters()), "the kernel knows no weight and bias of the norm"
        return glue.norm_modulate(x, shift, scale, norm.eps)
    return modulate(norm(x), shift, scale)


def gated_sum(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """x + gate * branch, gate (B, D): one kernel on a GPU."""
    if _in_one_kernel(x):
        from models.layers import glue  # imports Triton

        return glue.gated_sum(x, gate, branch)
    return x + gate[:, None] * branch


def _in_one_kernel(x: Tensor) -> bool:
    """Not while compiling: the compiler fuses these itself, with their neighbours."""
    fits = x.is_cuda and x.dtype != torch.float64 and x.shape[-1] <= WIDEST
    return fits and not torch.compiler.is_compiling() and triton_runs_on(x.device)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, L, D) times (1 + scale) plus shift, both (B, D)."""
    return x * (1 + scale[:, None]) + shift[:, None]


class FinalLayer(nn.Module):
    """Modulated norm and a linear map to pixels: (B, L, D), condition (B, D) -> (B, L, outputs)."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=1)
        return self.linear(norm_modulate(x, self.norm_final, shift, scale))

    def zero_(self) -> None:
        """Start by predicting exactly zero (DiT; DiS does not)."""
        zero_linear_(self.linear)
        zero_linear_(self.adaLN_modulation[-1])


def zero_linear_(layer: nn.Module) -> None:
    """adaLN-Zero: a layer whose output is exactly zero at the start of training."""
    assert isinstance(layer, nn.Linear)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
