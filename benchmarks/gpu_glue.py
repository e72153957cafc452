"""The glue between matrix products, fused against as written: how exact, and how fast, alone and in small networks.

The residual stream is float32 and the rest what autocast makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from models import Denoiser, build
from models.layers import glue, modulation
from study.bench.workload import inputs as inputs_of
from study.bench.workload import nudged

EPS = 1e-6
NETWORKS = ("dit-tiny", "diffussm-tiny")
LIMIT = 2e-5  # of a network's output and gradients, in which rounding adds up


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


def gradients(form: Callable[..., Tensor], inputs: list[Tensor], half: torch.dtype, read: torch.dtype) -> list[Tensor]:
    """The output under autocast, in the dtype in which it is `read`, and its gradients towards a fixed direction."""
    with torch.autocast(inputs[0].device.type, half, enabled=half != torch.float32):
        y = form(*inputs).to(read)
    direction = inputs[0].detach().flip(1).to(half).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, inputs, direction)]


def read_in(name: str, half: torch.dtype) -> torch.dtype:
    """A product follows the norm, and rounds; the sum goes on as the residual stream."""
    return half if name == "norm and modulation" else torch.float32


def errors(half: torch.dtype, device: torch.device, width: int) -> list[dict[str, str]]:
    """Norms of differences to float64 over norms; rounding a result to bf16 alone makes 1.7e-3."""
    lines = []
    for name, (fused, written) in PAIRS.items():
        inputs = given(name, 3, 77, width, half, device)
        wide = [t.detach().double().requires_grad_() for t in inputs]
        direction = inputs[0].detach().flip(1).to(half).double()
        reference = written(*wide)
        exact = [reference.detach(), *torch.autograd.grad(reference, wide, direction)]
        found = [
            ((got.double() - wanted).norm() / wanted.norm()).item()
            for got, wanted in zip(gradients(fused, inputs, half, read_in(name, half)), exact, strict=True)
        ]
        limit = 5e-6 if half == torch.float32 else 3e-3
        verdict = "within" if all(error <= limit for error in found) else f"above {limit:.0e}"
        errors = ", ".join(f"{error:.1e}" for error in found)
        lines.append({"glue": name, "dtype": str(half)[6:], "y and gradients": errors, "verdict": verdict})
    return lines


@contextmanager
def glued(fused: bool) -> Iterator[None]:
    """All glue fused, or none of it, on any device."""
    default, modulation._in_one_kernel = modulation._in_one_kernel, lambda x: fused
    try:
        yield
    finally:
        modulation._in_one_kernel = default


def network_errors(device: torch.device) -> Iterator[dict[str, str]]:
    """Of small networks in float32, fused against as written: the output, and the worst gradient of a parameter."""
    for name in NETWORKS:
        torch.manual_seed(0)
        network = nudged(build(name)).to(device)
        found = [(got - wanted).norm() / wanted.norm() for got, wanted in zip(*_both_ways(network), strict=True)]
        output, worst = found[0].item(), torch.stack(found[1:]).max().item()
        verdict = "within" if max(output, worst) <= LIMIT else f"above {LIMIT:.0e}"
        line = {"form": "fused glue", "dtype": "float32", "case": name, "y": f"{output:.1e}"}
        yield line | {"worst gradient": f"{worst:.1e}", "verdict": verdict}


def _both_ways(network: Denoiser) -> Iterator[list[Tensor]]:
    x, t, y = inputs_of(network.config, 2, next(network.parameters()).device)
    for fused in (True, False):
        with glued(fused):
            output = network(x, t, y)
            loss = (output * x.flip(0)).sum()
            reached = [p for p in network.parameters() if p.requires_grad]
            yield [output.detach(), *torch.autograd.grad(loss, reached)]


def calls(
    batch: int, length: int, width: int, half: torch.dtype, device: torch.device
) -> dict[str, Callable[[], object]]:
    """Forward and backward, both ways of each pair, each with the rounding that the next product needs."""
    made: dict[str, Callable[[], object]] = {}
    for name, forms in PAIRS.items():
        inputs = given(name, batch, length, width, half, device)
        for form, label in zip(forms, ("fused", "as written"), strict=True):
            made[f"{name}, {label}"] = partial(gradients, form, inputs, half, read_in(name, half))
    return made
