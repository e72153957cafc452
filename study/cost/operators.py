"""What every tensor operator costs: counted by a formula, one unit per output element, or free.

One table serves both tracers, so it holds the names of torch's dispatcher (`native_layer_norm`) and
of its graph tracer (`layer_norm`) side by side. A name in none of the sets is an error, not a zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count

from models.macs import real_fft

FEW_ELEMENTS = 64
"""An unknown operator whose outputs hold no more elements than this is let pass."""

COMPLEX_PRODUCT = 3  # 4 multiplications and 2 additions are 3 MACs
COMPLEX_BY_REAL = 1

_ELEMENTWISE = """
    __and__ __or__ _adaptive_avg_pool2d _fused_rms_norm _log_softmax _safe_softmax _softmax abs adaptive_avg_pool2d
    add addcdiv addcmul amax amin avg_pool1d avg_pool2d batch_norm bernoulli bitwise_and bitwise_not ceil clamp
    clamp_max clamp_min cos cumprod cumsum div dropout elu embedding_dense eq exp expm1 floor fmod ge gelu glu
    group_norm gt hardtanh index_add isnan layer_norm le leaky_relu lerp linalg_vector_norm log log10 log1p log2
    log_sigmoid_forward log_softmax logcumsumexp logical_and logical_not logical_or logsigmoid logsumexp lt max
    maximum mean min minimum mish mse_loss mul native_batch_norm native_dropout native_group_norm native_layer_norm
    ne neg norm normal_ polar pow prod rand rand_like randn randn_like reciprocal relu remainder rms_norm round
    rsqrt rsub scatter_add sigmoid silu sin softmax softplus sqrt square std sub sum tanh true_divide var var_mean
    where
"""
ELEMENTWISE = frozenset(_ELEMENTWISE.split())
"""Norms, activations, gates, sums and reductions: `Macs.elementwise`, left out of every total."""

_FREE = """
    Int ScalarImplicit _conj _conj_physical _local_scalar_dense _nested_tensor_from_mask _reshape_alias
    _reshape_copy _to_copy _unsafe_index _unsafe_view adjoint alias arange as_strided broadcast_to cat chunk clone
    complex concat conj conj_physical constant_pad_nd contiguous copy copy_ detach diagonal dim embedding empty
    empty_like empty_strided expand expand_as eye fill fill_ flatten flip full full_like gather hstack imag index
    index_put index_select is_pinned is_same_size item lift_fresh lift_fresh_copy linspace mH mT masked_fill
    meshgrid moveaxis movedim narrow new_empty new_empty_strided new_full new_ones new_zeros numel numpy_T ones
    ones_like pad permute pixel_shuffle pixel_unshuffle real repeat repeat_interleave reshape reshape_as
    resolve_conj resolve_neg roll scalar_tensor scatter select select_scatter size slice slice_scatter split
    split_with_sizes squeeze stack swapaxes t tile to transpose tril triu type_as unbind unflatten unfold unsqueeze
    upsample_nearest1d upsample_nearest2d view view_as view_as_complex view_as_real vstack zero zeros zeros_like
"""
FREE = frozenset(_FREE.split())
"""Views, copies, fills and gathers: they move data and compute nothing."""


class UnknownOperatorError(ValueError):
    """An operator that no handler knows: counting it as zero would be a wrong conclusion."""

    def __init__(self, operator: str, module: str, elements: int) -> None:
        super().__init__(
            f"operator {operator} in module {module or 'the root'} yields {elements} elements and no handler knows it: "
            "register a flop formula (torch.utils.flop_counter.register_flop_formula) or list it in "
            "study/cost/operators.py"
        )


def is_elementwise(name: str) -> bool:
    """In-place forms and gradients are filed with the operator they belong to."""
    return _plain(name) in ELEMENTWISE or name in ELEMENTWISE


def is_free(name: str) -> bool:
    return _plain(name) in FREE or name in FREE


def _plain(name: str) -> str:
    return name.removesuffix("_backward").removesuffix("_data").removesuffix("_backward").removesuffix("_")


def opaque_part(operator: str) -> str:
    """The part of `Macs` that an operator of our own belongs to, read off its name (`ssm::selective_scan`)."""
    name = operator.rpartition("::")[2]
    words = {"kernel": "kernel", "tables": "kernel", "scan": "scan", "conv": "fft", "fft": "fft", "s4d": "fft"}
    return next((part for word, part in words.items() if word in name), "matmul")


def complex_product(first: bool, second: bool) -> int:
    """MACs per element of a product whose factors are complex or not; real products are elementwise work."""
    if first and second:
        return COMPLEX_PRODUCT
    return COMPLEX_BY_REAL if first or second else 0


def complex_fft(length: int, count: int) -> int:
    """`count` complex transforms of 5 n log2 n real operations each."""
    return 2 * real_fft(length, count)


def fft_r2c_flops(x: Sequence[int], dim: Sequence[int], *_: Any, **__: Any) -> int:
    length = math.prod(x[d] for d in dim)
    return 2 * real_fft(length, math.prod(x) // length)


def fft_c2r_flops(x: Sequence[int], dim: Sequence[int], normalization: int, last: int, *_: Any, **__: Any) -> int:
    """`last` is the real length of the innermost transformed dimension."""
    full = list(x)
    full[dim[-1]] = last
    length = math.prod(full[d] for d in dim)
    return 2 * real_fft(length, math.prod(full) // length)


def fft_c2c_flops(x: Sequence[int], dim: Sequence[int], *_: Any, **__: Any) -> int:
    length = math.prod(x[d] for d in dim)
    return 2 * complex_fft(length, math.prod(x) // length)


def product_flops(first: Tensor | float, second: Tensor | float, *_: Any, out_val: Tensor, **__: Any) -> int:
    per_element = complex_product(_is_complex(first), _is_complex(second))
    return 2 * per_element * out_val.numel()


def matrix_product_flops(first: Tensor, second: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    """torch's own formula takes complex matrices for real ones."""
    per_product = complex_product(first.is_complex(), second.is_complex()) or 1
    return 2 * per_product * out_val.numel() * first.shape[-1]


def added_matrix_product_flops(_: Tensor, *factors: Any, **keywords: Any) -> int:
    return matrix_product_flops(*factors, **keywords)


def convolution_backward_flops(
    grad: Sequence[int], x: Sequence[int], weight: Sequence[int], *settings: Any, **_: Any
) -> int:
    """The forward's cost for each gradient asked for. torch's own formula forgets the groups of a depthwise one."""
    transposed, asked = settings[4], settings[7]
    return conv_flop_count(list(x), list(weight), list(grad), transposed=transposed) * sum(asked[:2])


# FlopCounterMode: give these tensors, not shapes.
product_flops._get_raw = True  # type: ignore[attr-defined]
matrix_product_flops._get_raw = True  # type: ignore[attr-defined]
added_matrix_product_flops._get_raw = True  # type: ignore[attr-defined]


def _is_complex(x: Tensor | float) -> bool:
    return x.is_complex() if isinstance(x, Tensor) else isinstance(x, complex)


aten = torch.ops.aten
FORMULAS: dict[Any, Callable[..., int]] = {
    aten._fft_r2c: fft_r2c_flops,
    aten._fft_c2r: fft_c2r_flops,
    aten._fft_c2c: fft_c2c_flops,
    aten.mul: product_flops,
    aten.mm: matrix_product_flops,
    aten.bmm: matrix_product_flops,
    aten.addmm: added_matrix_product_flops,
    aten.baddbmm: added_matrix_product_flops,
    aten.convolution_backward: convolution_backward_flops,
}
"""FLOPs (2 per MAC) of what torch's own registry leaves at zero or gets wrong."""
