"""S4D's core in every form, ours and others', as calls to be timed side by side: bidirectional, bf16 in and out.

A side takes x (B, L, H) as a network holds it, so changes of layout are part of its time; kernels that work on
(H, B, L) or (B, H, L) are timed on those too. The kernels of peers and of the first forms are generated in
float32 from the same modes, with gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.clock import in_words
from benchmarks.exactness import forced
from models.ssm import core
from models.ssm.conv import two_sided
from models.ssm.forms import Form
from models.ssm.kernel import Modes, vandermonde_kernel
from models.ssm.s4d import S4D

Core = Callable[..., Tensor]
"""x (B, L, H), modes (directions, H, n) four times, D (streams, H) -> (B, L, streams * H)."""

REFERENCE = "reference module"
FUSED = "fused"


class Shape(NamedTuple):
    batch: int
    length: int
    width: int
    state: int
    join: str

    def __str__(self) -> str:
        return f"B={self.batch} L={self.length} D={self.width} N={self.state} {self.join}"

    @property
    def streams(self) -> int:
        return 2 if self.join == "concat" else 1

    def least_bytes(self) -> int:
        """Of a forward pass: x read once and y written once, in bf16."""
        return 2 * self.batch * self.length * self.width * (1 + self.streams)


class Side(NamedTuple):
    """One form at one shape: forward alone, and forward with the gradients of every input."""

    forward: Callable[[], object]
    both: Callable[[], object] | None


def sides(shape: Shape, device: torch.device) -> tuple[dict[str, Side], list[str]]:
    """Every form that runs here, and in words why others do not."""
    torch.manual_seed(0)
    layer = S4D(shape.width, shape.state, join=shape.join).to(device)
    with torch.no_grad():
        parameters = tuple(part.clone().requires_grad_() for part in (*layer.modes(), layer.D))
    x = torch.randn(shape.batch, shape.length, shape.width, device=device, dtype=torch.bfloat16)
    if device.type == "cpu":  # where Triton's interpreter multiplies bf16 wrongly
        x = x.float()
    grad = torch.randn(shape.batch, shape.length, shape.streams * shape.width, device=device).to(x.dtype)
    made = {name: _side(form, x, parameters, grad) for name, form in OURS.items()}
    made["fused, x held (B, H, L)"] = _side(OURS[FUSED], x.mT.contiguous().mT, parameters, grad.mT.contiguous().mT)
    made["fused kernel alone, (H, B, L), tables kept"] = _kernel_alone(x, parameters)
    absent = []
    for name, load in PEERS.items():
        try:
            form = partial(convolved_by, load(shape, device))
            check(form, x, parameters)
            made[name] = _side(form, x, parameters, grad)
        except Exception as refusal:  # whatever a foreign package says, the rest is still measured
            absent.append(f"{name}: {in_words(refusal)}")
    made["SDPA, 16 heads"] = _attention(shape, x)
    return made, absent


def _side(form: Core, x: Tensor, parameters: tuple[Tensor, ...], grad: Tensor) -> Side:
    leaf = x.detach().requires_grad_()

    def forward() -> object:
        with torch.no_grad():
            return form(x, *parameters)

    return Side(forward, lambda: torch.autograd.grad(form(leaf, *parameters), (leaf, *parameters), grad))


def _kernel_alone(x: Tensor, parameters: tuple[Tensor, ...]) -> Side:
    from models.ssm import fused

    with torch.no_grad():
        tables = fused.fused_tables(Modes(*parameters[:4]), parameters[4])
        held = x.permute(2, 0, 1).contiguous()
    return Side(lambda: fused.fused_conv(held, tables), None)


def _attention(shape: Shape, x: Tensor) -> Side:
    """Attention's core at the same length and width: no projections, as there are none here."""
    heads = 16 if shape.width % 16 == 0 else 1
    size = (shape.batch, heads, shape.length, shape.width // heads)
    q, k, v = (torch.randn(size, device=x.device, dtype=x.dtype, requires_grad=True) for _ in range(3))
    grad = torch.randn_like(q)

    def forward() -> object:
        with torch.no_grad():
            return scaled_dot_product_attention(q, k, v)

    return Side(forward, lambda: torch.autograd.grad(scaled_dot_product_attention(q, k, v), (q, k, v), grad))


def reference(x: Tensor, *parameters: Tensor) -> Tensor:
    """As the S4 repository's module does it: every power of every mode, two transforms with flips, in float32."""
    return core.textbook(x.float(), Modes(*parameters[:4]), parameters[4]).to(x.dtype)


def merged(x: Tensor, *parameters: Tensor) -> Tensor:
    """Both directions as one two-sided filter and one transform, by autograd, in float32."""
    return convolved_by(_transformed, x, *parameters)


def convolved_by(convolve: Callable[[Tensor, Tensor], Tensor], x: Tensor, *parameters: Tensor) -> Tensor:
    """A convolution of (B, H, L) with filters (H, 2L-1), once per stream."""
    filters = two_sided(vandermonde_kernel(Modes(*parameters[:4]), x.shape[1]), parameters[4])
    u = x.mT
    return torch.cat([convolve(u, each).to(x.dtype) for each in filters], dim=1).mT


def _transformed(u: Tensor, filters: Tensor) -> Tensor:
    n = 2 * u.shape[-1]
    y = torch.fft.irfft(torch.fft.rfft(u.float(), n=n) * torch.fft.rfft(filters, n=n), n=n)
    return y[..., u.shape[-1] - 1 : n - 1]


class _Forced(torch.autograd.Function):
    """The operator with one form for forward and backward, whenever autograd gets to the latter."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, form: Form, *inputs: Tensor) -> Tensor:
        ctx.form = form  # type: ignore[attr-defined]
        ctx.save_for_backward(*inputs)
        with forced(form):
            return core.s4d_forward(*inputs, False)[0]

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inputs = ctx.saved_tensors  # type: ignore[attr-defined]
        nothing = core._empty_kept(inputs[-1], inputs[0].shape[1])
        with forced(ctx.form):  # type: ignore[attr-defined]
            return None, *core.s4d_backward(grad, *inputs, *nothing)


FORMS = {"FFT, custom backward": Form.CONVOLUTION, "bmm chain": Form.CHUNKED, FUSED: Form.FUSED}

OURS: dict[str, Core] = {
    REFERENCE: reference,
    "merged FFT": merged,
    **{name: partial(_Forced.apply, form) for name, form in FORMS.items()},
}


def subquadratic_ops(shape: Shape, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """NVIDIA's fused transforms (subquadratic-ops-torch-cu13; up to 4096 tokens). Measured, never depended on."""
    operator = import_module("subquadratic_ops_torch.fft_conv1d").fft_conv1d
    return lambda u, filters: operator(u.contiguous(), filters.to(u.dtype))


def flash_fft_conv(shape: Shape, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """FlashFFTConv, whose filters are circular: taps of the future come last."""
    length = shape.length
    convolution = import_module("flashfftconv").FlashFFTConv(2 * length, dtype=torch.bfloat16).to(device)

    def convolve(u: Tensor, filters: Tensor) -> Tensor:
        circular = torch.cat(
            [filters[:, length - 1 :], filters.new_zeros(len(filters), 1), filters[:, : length - 1]], 1
        )
        return convolution(u.contiguous(), circular)

    return convolve


PEERS: dict[str, Callable[[Shape, torch.device], Callable[[Tensor, Tensor], Tensor]]] = {
    "subquadratic-ops fft_conv1d": subquadratic_ops,
    "FlashFFTConv": flash_fft_conv,
}


def check(form: Core, x: Tensor, parameters: tuple[Tensor, ...]) -> None:
    """A peer that computes something else is not timed."""
    with torch.no_grad():
        few = x[:2], *parameters
        actual, expected = form(*few).float(), reference(*few).float()
    error = ((actual - expected).norm() / expected.norm()).item()
    if not error < 2e-2:
        raise ValueError(f"its output differs from the reference by {error:.1e}")
