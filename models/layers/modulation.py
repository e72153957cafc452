"""Adaptive LayerNorm: the condition shifts and scales what the norm has flattened."""

from __future__ import annotations

from torch import Tensor, nn


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
        return self.linear(modulate(self.norm_final(x), shift, scale))

    def zero_(self) -> None:
        """Start by predicting exactly zero (DiT; DiS does not)."""
        zero_linear_(self.linear)
        zero_linear_(self.adaLN_modulation[-1])


def zero_linear_(layer: nn.Module) -> None:
    """adaLN-Zero: a layer whose output is exactly zero at the start of training."""
    assert isinstance(layer, nn.Linear)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
