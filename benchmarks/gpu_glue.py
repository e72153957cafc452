"""The glue between matrix products, fused against as written: how exact, and how fast. Residual stream in float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from models.layers import glue

EPS = 1e-6


def written_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale[:, None]) + shift[:, None]


def fused_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return glue.norm_modulate(x, shift, scale, EPS)


def written_gate(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    return x + gate[:, None] * branch


PAIRS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "norm and modulation": (fused_norm, written_norm),
    "gate and sum": (glue.gated_sum, written_gate),
}


def given(name: str, batch: int, length: int, width: int, half: torch.dtype, device: torch.device) -> list[Tensor]:
    """x (B, L, D) in float32; the conditions (B, D) and the branch (B, L, D) in `half`."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"norm and modulation": [(batch, width)] * 2, "gate and sum": [(batch, width), (batch, length, width)]}
    others = [torch.randn(shape, generator=generator).to(half) for shape in shapes[name]]
    x = torch.randn(batch, length, width, generator=generator)
    return [t.to(device).requires_grad_() for t in (x, *others)]


def gradients(form: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The output, and its gradients towards a fixed direction."""
    y = form(*inputs)
    direction = inputs[0].detach().flip(1).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, inputs, direction)]


def errors(half: torch.dtype, device: torch.device, width: int) -> list[dict[str, str]]:
    """Norms of differences to float64 over norms; rounding a result to bf16 alone makes 1.7e-3."""
    lines = []
    for name, (fused, written) in PAIRS.items():
        inputs = given(name, 3, 77, width, half, device)
        exact = gradients(written, [t.detach().double().requires_grad_() for t in inputs])
        found = [
            ((got.double() - wanted).norm() / wanted.norm()).item()
            for got, wanted in zip(gradients(fused, inputs), exact, strict=True)
        ]
        limit = 5e-6 if half == torch.float32 else 3e-3
        verdict = "within" if all(error <= limit for error in found) else f"above {limit:.0e}"
        errors = ", ".join(f"{error:.1e}" for error in found)
        lines.append({"glue": name, "dtype": str(half)[6:], "y and gradients": errors, "verdict": verdict})
    return lines


def calls(
    batch: int, length: int, width: int, half: torch.dtype, device: torch.device
) -> dict[str, Callable[[], object]]:
    """Forward and backward, both ways of each pair."""
    made: dict[str, Callable[[], object]] = {}
    for name, forms in PAIRS.items():
        inputs = given(name, batch, length, width, half, device)
        for form, label in zip(forms, ("fused", "as written"), strict=True):
            made[f"{name}, {label}"] = lambda form=form, inputs=inputs: gradients(form, inputs)  # type: ignore[misc]
    return made
