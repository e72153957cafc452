"""The core of S4D as one opaque operator: modes and a sequence in, the sequence convolved out.

`ssm::s4d` hides how: kernel generation, form of convolution and backward may change per device
without any caller knowing. Its model MACs are those of the mathematics and do not change.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from models.layers.derivatives import refuse_second, refuse_tangents
from models.macs import Macs, real_fft
from models.ssm import forms
from models.ssm.chunked import ChunkTables, chunk_length, chunk_tables, chunked_conv, chunked_conv_backward
from models.ssm.conv import (
    causal_conv,
    depthwise_conv,
    depthwise_conv_backward,
    depthwise_filter_gradient,
    direct_conv,
    direct_conv_backward,
    direct_filter_gradient,
    spectral_conv,
    spectral_conv_backward,
    transform_length,
    two_sided,
    two_sided_backward,
    two_way_conv,
)
from models.ssm.forms import Form
from models.ssm.kernel import (
    Modes,
    Powers,
    empty_powers,
    power_tables,
    split_kernel,
    split_kernel_backward,
    vandermonde_kernel,
)

DIRECT_LENGTH = 64
"""Longest sequence convolved tap by tap (measured in benchmarks/s4d_core.py)."""

WIDE = 256
"""Fewest channels whose filters' gradient is had sooner as u lies: transposing costs more with every channel."""

BLOCKED_LENGTH = 512
"""Shortest sequence that is faster transposed in blocks; the lines of shorter ones stay in a CPU's first cache."""


def textbook(u: Tensor, modes: Modes, skip: Tensor) -> Tensor:
    """What the operator computes, as one would write it first: (B, L, H) -> (B, L, streams * H)."""
    x = u.mT
    kernels = vandermonde_kernel(modes, u.shape[1])
    ways = list(two_way_conv(x, kernels)) if len(kernels) == 2 else [causal_conv(x, kernels[0])]
    streams = torch.stack(ways if len(skip) == len(ways) else [sum(ways[1:], ways[0])], dim=1)
    return (streams + skip[..., None] * x[:, None]).flatten(1, 2).mT


def s4d(u: Tensor, a_re: Tensor, a_im: Tensor, c_re: Tensor, c_im: Tensor, skip: Tensor) -> Tensor:
    """u (B, L, H), modes (directions, H, n) each, D skip (streams, H) -> (B, L, streams * H) in u's dtype.

    Two directions with one stream are summed. Computes in float32 whatever the autocast (float64 if given).
    """
    inputs = (u, a_re, a_im, c_re, c_im, skip)
    refuse_tangents("ssm::s4d", *inputs)
    # A CPU has memory to spare and no time; an accelerator the reverse.
    keeps = u.device.type == "cpu" and forms.choose(u, a_re.shape[-1]) is Form.CONVOLUTION
    keep = keeps and torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    y: Tensor = s4d_forward(*inputs, keep)[0]
    return y


class Kept(NamedTuple):
    """What the forward leaves to the backward; empty tensors where that is to compute it again."""

    signal: Tensor  # the conjugate of the sequence's transform (H, B, bins); the direct forms need none
    tables: Tensor
    coarse: Tensor
    fine: Tensor


@torch.library.custom_op("ssm::s4d", mutates_args=())
def s4d_forward(
    u: Tensor, a_re: Tensor, a_im: Tensor, c_re: Tensor, c_im: Tensor, skip: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`s4d` and, if `keep`, the intermediate results of `Kept`."""
    with torch.autocast(u.device.type, enabled=False):
        modes, skip = _computable(u, Modes(a_re, a_im, c_re, c_im), skip)
        form = forms.choose(u, a_re.shape[-1])
        if form is not Form.CONVOLUTION:
            return _convolve(form, u, _chunk_tables(form, modes, skip, u.shape[1])), *_empty_kept(skip, u.shape[1])
        powers = power_tables(modes, u.shape[1])
        tables = _tables(modes, powers, skip, u.shape[1])
        if not keep:
            return _convolve(form, u, [tables]), *_empty_kept(skip, u.shape[1])
        signal = _empty_signal(u, tables)
        return _convolve(form, u, [tables], signal), signal, tables, *powers


@torch.library.custom_op("ssm::s4d_backward", mutates_args=())
def s4d_backward(
    grad: Tensor,
    u: Tensor,
    a_re: Tensor,
    a_im: Tensor,
    c_re: Tensor,
    c_im: Tensor,
    skip: Tensor,
    signal: Tensor,
    tables: Tensor,
    coarse: Tensor,
    fine: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of every input of `s4d`, from what the forward kept or else from the inputs again."""
    with torch.autocast(u.device.type, enabled=False):
        given = (a_re, a_im, c_re, c_im, skip)
        modes, skip = _computable(u, Modes(*given[:4]), skip)
        form = forms.choose(u, a_re.shape[-1])
        if form is not Form.CONVOLUTION:
            return _chunk_backward(form, grad, u, modes, skip, given)
        powers = Powers(coarse, fine)
        if not tables.numel():
            powers = power_tables(modes, u.shape[1])
            tables = _tables(modes, powers, skip, u.shape[1])
        grad_u, grad_filters = _convolve_backward(grad, u, tables, signal, skip.shape)
        grad_kernels, grad_skip = two_sided_backward(grad_filters, len(modes.a_re))
        grads = (*split_kernel_backward(grad_kernels, modes, powers), grad_skip)
        return grad_u, *_as_given(grads, given)


def _convolve_backward(
    grad: Tensor, u: Tensor, tables: Tensor, signal: Tensor, streams: torch.Size
) -> tuple[Tensor, Tensor]:
    """Gradients of u (B, L, H) and of the filters (streams, H, 2L-1), by the form whose tables these are."""
    dtype = tables.dtype.to_real()
    if not tables.is_complex() and _lies_for_depthwise(u, dtype):
        grad_u, grad_filters = _depthwise_backward(grad.to(dtype), u.to(dtype), tables)
        return grad_u.to(u.dtype), grad_filters
    grad_y = channels_first(grad, dtype).unflatten(0, streams)
    if tables.is_complex():
        if not signal.numel():
            n = transform_length(u.shape[1])
            signal = torch.fft.rfft(channels_first(u, dtype), n=n).conj_physical_()
        grad_x, grad_filters = spectral_conv_backward(grad_y, signal, tables)
    else:
        grad_x, grad_filters = direct_conv_backward(grad_y, channels_first(u, dtype), tables)
    return _tokens_first(grad_x, u), grad_filters


def _depthwise_backward(grad: Tensor, u: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of u (B, L, H) as it lies, and of the filters by what is sooner at this width."""
    grad_u = depthwise_conv_backward(grad, filters)
    if u.shape[2] >= WIDE:
        return grad_u, depthwise_filter_gradient(grad, u)
    grad_y = channels_first(grad, u.dtype).unflatten(0, filters.shape[:2])
    return grad_u, direct_filter_gradient(grad_y, channels_first(u, u.dtype))


Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _chunk_backward(
    form: Form, grad: Tensor, u: Tensor, modes: Modes, skip: Tensor, given: tuple[Tensor, ...]
) -> Gradients:
    """`s4d_backward` of the chunked forms, which keep nothing."""
    x, grad_y = channels_first(u, u.dtype), channels_first(grad, u.dtype).unflatten(0, skip.shape)
    tables = _chunk_tables(form, modes, skip, u.shape[1])
    if form is Form.FUSED:
        from models.ssm import fused  # imports Triton

        grad_x, grad_modes, grad_skip = fused.fused_conv_backward(grad_y, x, fused.FusedTables(*tables))
    else:
        grad_x, grad_modes, grad_skip = chunked_conv_backward(grad_y, x, modes, ChunkTables(*tables))
    return _tokens_first(grad_x, u), *_as_given((*grad_modes, grad_skip), given)


def _as_given(grads: tuple[Tensor, ...], given: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    g0, g1, g2, g3, g4 = (g.to(of.dtype).contiguous() for g, of in zip(grads, given, strict=True))
    return g0, g1, g2, g3, g4


@torch.library.custom_op("ssm::s4d_tables", mutates_args=())
def s4d_tables(
    a_re: Tensor, a_im: Tensor, c_re: Tensor, c_im: Tensor, skip: Tensor, length: int, form: str = "CONVOLUTION"
) -> list[Tensor]:
    """Everything about the parameters that `s4d_apply` needs for sequences of one length; `form` names a `Form`."""
    with torch.autocast(a_re.device.type, enabled=False):
        modes, skip = _computable(a_re, Modes(a_re, a_im, c_re, c_im), skip)
        if Form[form] is not Form.CONVOLUTION:
            return [table.contiguous() for table in _chunk_tables(Form[form], modes, skip, length)]
        return [_tables(modes, power_tables(modes, length), skip, length)]


@torch.library.custom_op("ssm::s4d_apply", mutates_args=())
def s4d_apply(u: Tensor, tables: list[Tensor], form: str = "CONVOLUTION") -> Tensor:
    """`s4d` with its tables, made for the same `form`, at hand: (B, L, H) -> (B, L, streams * H)."""
    with torch.autocast(u.device.type, enabled=False):
        return _convolve(Form[form], u, tables)


def _computable(u: Tensor, modes: Modes, skip: Tensor) -> tuple[Modes, Tensor]:
    """Modes and skip in the dtype of the computation: float64 if any input is, else float32."""
    wide = torch.float64 in (u.dtype, modes.a_re.dtype)
    dtype = torch.float64 if wide else torch.float32
    return Modes(*(part.to(dtype) for part in modes)), skip.to(dtype)


def _tables(modes: Modes, powers: Powers, skip: Tensor, length: int) -> Tensor:
    """Filters (streams, H, 2L-1) of short sequences, their spectra (streams, H, bins) of long ones."""
    filters = two_sided(split_kernel(modes, powers, length), skip)
    return filters if length <= DIRECT_LENGTH else torch.fft.rfft(filters, n=transform_length(length))


def _chunk_tables(form: Form, modes: Modes, skip: Tensor, length: int) -> list[Tensor]:
    """`FusedTables` or `ChunkTables`."""
    if form is Form.FUSED:
        from models.ssm.fused import fused_tables  # imports Triton

        return list(fused_tables(modes, skip))
    return list(chunk_tables(modes, skip, chunk_length(length)))


def _convolve(form: Form, u: Tensor, tables: list[Tensor], signal: Tensor | None = None) -> Tensor:
    """(B, L, H) -> (B, L, streams * H) by the form whose tables these are; fills `signal` for the backward."""
    dtype = tables[0].dtype.to_real()
    if form is Form.CHUNKED:
        y = chunked_conv(channels_first(u, u.dtype), ChunkTables(*tables))
    elif form is Form.FUSED:
        from models.ssm.fused import FusedTables, fused_conv  # imports Triton

        y = fused_conv(channels_first(u, u.dtype), FusedTables(*tables))
    elif tables[0].is_complex():
        y = spectral_conv(channels_first(u, dtype), tables[0], signal)
    elif _lies_for_depthwise(u, dtype):
        return depthwise_conv(u.to(dtype), tables[0]).to(u.dtype)
    else:
        y = direct_conv(channels_first(u, dtype), tables[0])
    return _tokens_first(y.flatten(0, 1), u)


def _lies_for_depthwise(u: Tensor, dtype: torch.dtype) -> bool:
    """Where a library's kernels convolve (B, L, H) as it lies; held as (B, H, L) it is read as a matrix."""
    on_cpu = u.device.type == "cpu" and dtype is torch.float32
    return on_cpu and torch.backends.mkldnn.is_available() and u.is_contiguous()


def channels_first(u: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, L, H) -> (H, B, L) with L contiguous: a copy, or a view if so held."""
    u = u.to(dtype)
    if u.shape[1] < BLOCKED_LENGTH or u.mT.is_contiguous():
        return u.mT.contiguous().transpose(0, 1)
    return _transposed(u.reshape(-1, u.shape[2])).unflatten(1, u.shape[:2])


def _tokens_first(y: Tensor, like: Tensor) -> Tensor:
    """(H, B, L) -> (B, L, H) in the dtype of `like`, and held as `like` is."""
    y = y.to(like.dtype)
    if _is_transposed(like):
        return y.transpose(0, 1).contiguous().mT
    return _transposed(y.flatten(1)).unflatten(0, y.shape[1:])


def _transposed(matrix: Tensor) -> Tensor:
    """One large matrix is what torch transposes in blocks for a CPU's cache."""
    return matrix.t().contiguous()


def _is_transposed(u: Tensor) -> bool:
    """Whether (B, L, H) is a view of a contiguous (B, H, L), as convolutional layers hold it."""
    return u.mT.is_contiguous() and not u.is_contiguous()


def _empty_like(u: Tensor, channels: int) -> Tensor:
    """(B, L, channels) held as u is."""
    b, length, _ = u.shape
    return u.new_empty(b, channels, length).mT if _is_transposed(u) else u.new_empty(b, length, channels)


def _empty_signal(u: Tensor, tables: Tensor) -> Tensor:
    b, _, h = u.shape
    return tables.new_empty(h, b, tables.shape[-1]) if tables.is_complex() else tables.new_empty(0)


def _empty_kept(skip: Tensor, length: int) -> Kept:
    """Nothing, in the dtype of the tables."""
    dtype = skip.dtype if length <= DIRECT_LENGTH else skip.dtype.to_complex()
    return Kept(*(skip.new_empty(0, dtype=dtype) for _ in Kept._fields))


@s4d_forward.register_fake
def _(
    u: Tensor, a_re: Tensor, a_im: Tensor, c_re: Tensor, c_im: Tensor, skip: Tensor, keep: bool
) -> tuple[Tensor, ...]:
    modes, skip = _computable(u, Modes(a_re, a_im, c_re, c_im), skip)
    y = _empty_like(u, skip.shape[0] * skip.shape[1])
    if not keep:
        return y, *_empty_kept(skip, u.shape[1])
    tables = _empty_tables(skip, u.shape[1])
    return y, _empty_signal(u, tables), tables, *empty_powers(modes, u.shape[1])


@s4d_backward.register_fake
def _(grad: Tensor, u: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    return _empty_like(u, u.shape[2]), *(part.new_empty(part.shape) for part in rest[:5])


@s4d_tables.register_fake
def _(
    a_re: Tensor, a_im: Tensor, c_re: Tensor, c_im: Tensor, skip: Tensor, length: int, form: str = "CONVOLUTION"
) -> list[Tensor]:
    modes, skip = _computable(a_re, Modes(a_re, a_im, c_re, c_im), skip)
    if Form[form] is Form.CONVOLUTION:
        return [_empty_tables(skip, length)]
    if Form[form] is Form.FUSED:
        from models.ssm.fused import empty_tables  # imports Triton

        return list(empty_tables(modes, skip))
    return [table.contiguous() for table in _chunk_tables(Form[form], modes, skip, length)]


def _empty_tables(skip: Tensor, length: int) -> Tensor:
    if length <= DIRECT_LENGTH:
        return skip.new_empty(*skip.shape, 2 * length - 1)
    return skip.new_empty(*skip.shape, transform_length(length) // 2 + 1, dtype=skip.dtype.to_complex())


@s4d_apply.register_fake
def _(u: Tensor, tables: list[Tensor], form: str = "CONVOLUTION") -> Tensor:
    return _empty_like(u, tables[0].shape[0] * tables[0].shape[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:6], *output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:  # only what was kept is used, and nothing needs its gradient
        return (None,) * 7
    return *s4d_backward(grad, *ctx.saved_tensors), None


s4d_forward.register_autograd(_backward, setup_context=_save)
refuse_second("ssm::s4d", s4d_backward)


def model_macs(length: int, width: int, modes: int, directions: int, streams: int) -> Macs:
    """Model MACs of one image, by the transform form whatever form executes.

    Transforms have length 2L and 3 MACs per complex product in L+1 bins; `kernel` is 5 per mode and
    tap (the recurrence of powers, the real part of the sum) and the transforms of the filters.
    """
    return Macs(
        fft=real_fft(2 * length, (1 + streams) * width) + 3 * streams * width * (length + 1),
        kernel=5 * directions * width * modes * length + real_fft(2 * length, streams * width),
        elementwise=streams * width * length,  # the D skip
    )


@register_flop_formula(torch.ops.ssm.s4d)
def _s4d_flops(u: Any, a_re: Any, a_im: Any, c_re: Any, c_im: Any, skip: Any, *_: Any, **__: Any) -> int:
    macs = model_macs(u[1], u[2], a_re[2], a_re[0], skip[0])
    return 2 * (u[0] * macs.fft + macs.kernel)


@register_flop_formula(torch.ops.ssm.s4d_backward)
def _s4d_backward_flops(grad: Any, *shapes: Any, **_: Any) -> int:
    """Twice the forward, as for matrix products."""
    return 2 * _s4d_flops(*shapes)


@register_flop_formula(torch.ops.ssm.s4d_tables)
def _s4d_tables_flops(a_re: Any, a_im: Any, c_re: Any, c_im: Any, skip: Any, length: int, **_: Any) -> int:
    return 2 * model_macs(length, a_re[1], a_re[2], a_re[0], skip[0]).kernel


@register_flop_formula(torch.ops.ssm.s4d_apply)
def _s4d_apply_flops(u: Any, tables: Any, **_: Any) -> int:
    return 2 * u[0] * model_macs(u[1], u[2], 0, 0, tables[0][0]).fft
