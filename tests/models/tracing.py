"""Elementwise work read off a traced call, a second opinion on the closed forms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models import Denoiser, DenoiserConfig

KINDS = {
    "aten.native_group_norm.default": "norm",
    "aten.native_layer_norm.default": "norm",
    "aten.silu.default": "activation",
    "aten.gelu.default": "activation",
    "aten.add.Tensor": "sum",
    "aten.mul.Tensor": "product",
}


class _Elements(TorchDispatchMode):
    """Output elements of norms and activations, and of sums and products of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        kind = KINDS.get(str(func))
        if kind in ("norm", "activation") or (kind and all(isinstance(arg, Tensor) and arg.ndim for arg in args[:2])):
            self.seen[kind] += (out[0] if isinstance(out, tuple) else out).numel()
        return out


def traced_elements(denoiser: type[Denoiser], config: DenoiserConfig) -> Counter[str]:
    """{norm, activation, sum, product}: elements, for one image on the meta device."""
    with torch.device("meta"):
        model = denoiser(config).eval()
        x, t = torch.empty(1, config.channels, *config.size), torch.zeros(1)
        y = torch.zeros(1, dtype=torch.int64) if config.classes else None
    return traced_call(model, x, t, y)


def traced_call(module: nn.Module, *inputs: Tensor | None) -> Counter[str]:
    with torch.device("meta"), torch.no_grad(), _Elements() as elements:
        module(*inputs)
    return elements.seen
