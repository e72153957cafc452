"""Method three: fvcore's FlopCountAnalysis on real CPU tensors, with handles for all that it leaves at zero.

fvcore traces the network into a graph and asks one handle per node. Its "flops" are MACs. Ours answer
with the part of `Macs` a node belongs to, so that the result compares part by part.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import conv_flop_jit
from torch import nn
from torch.utils.flop_counter import flop_registry

from models.denoiser import Denoiser, DenoiserConfig
from models.macs import Macs, real_fft
from study.cost.operators import (
    ELEMENTWISE,
    FEW_ELEMENTS,
    FREE,
    UnknownOperatorError,
    complex_fft,
    complex_product,
    is_elementwise,
    is_free,
    opaque_part,
)
from study.cost.tracer import example_inputs, fast_paths_off, network, per_image

Value = Any  # torch._C.Value: a node's input or output, with shape and dtype
Handle = Callable[[Sequence[Value], Sequence[Value]], Counter[str]]


def count(config: DenoiserConfig, handles: Mapping[str, Handle] | None = None) -> Macs:
    """Forward MACs of one image; builds the network and runs it, so only for sizes that fit in memory."""
    return count_network(network(config), config, handles)


def count_network(model: Denoiser, config: DenoiserConfig, handles: Mapping[str, Handle] | None = None) -> Macs:
    chosen = HANDLES | own_handles() if handles is None else handles
    return per_image(*(_parts(model.train(), config, batch, chosen) for batch in (1, 2)))


def _parts(model: nn.Module, config: DenoiserConfig, batch: int, handles: Mapping[str, Handle]) -> Counter[str]:
    inputs = tuple(x for x in example_inputs(config, batch, "cpu") if x is not None)
    with fast_paths_off(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's remarks on constants; unknown operators raise
        analysis = _Analysis(model, inputs).clear_op_handles().set_op_handle(**handles)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return Counter({part: int(value) for part, value in analysis.by_operator().items()})


class _Analysis(FlopCountAnalysis):  # type: ignore[misc]
    """fvcore lists what it does not know and counts it as zero; here that is an error."""

    def _should_ignore_node(self, node: Any) -> bool:
        kind = node.kind()
        name = kind.partition("::")[2]
        if kind.startswith("prim::") and super()._should_ignore_node(node):
            return True
        elements = sum(math.prod(_shape(value)) for value in node.outputs())
        if is_free(name) or is_elementwise(name) or elements <= FEW_ELEMENTS:
            return True
        operator = f"{kind}.{node.pyname()}" if kind == "prim::PythonOp" else kind
        raise UnknownOperatorError(operator, node.scopeName().rpartition("/")[2], elements)


def _shape(value: Value) -> list[int]:
    type_ = value.type()
    return (type_.sizes() or []) if type_.kind() == "TensorType" else []


def _is_complex(value: Value) -> bool:
    type_ = value.type()
    return type_.kind() == "TensorType" and type_.dtype() is not None and type_.dtype().is_complex


def _matmul(inputs: Sequence[Value], outputs: Sequence[Value]) -> Counter[str]:
    """Output elements times the inner dimension; a baddbmm's factors come second and third."""
    left, right = inputs[1:3] if outputs[0].node().kind() == "aten::baddbmm" else inputs[:2]
    part = "attention" if _is_activation(left) and _is_activation(right) else "matmul"
    per_product = complex_product(_is_complex(left), _is_complex(right)) or 1
    return Counter({part: per_product * math.prod(_shape(outputs[0])) * _shape(left)[-1]})


def _linear(inputs: Sequence[Value], outputs: Sequence[Value]) -> Counter[str]:
    return Counter(matmul=math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1])


def _addmm(inputs: Sequence[Value], outputs: Sequence[Value]) -> Counter[str]:
    return Counter(matmul=math.prod(_shape(outputs[0])) * _shape(inputs[1])[-1])


def _convolution(inputs: Sequence[Value], outputs: Sequence[Value]) -> Counter[str]:
    return Counter(matmul=int(conv_flop_jit(inputs, outputs).total()))


def _einsum(inputs: Sequence[Value], outputs: Sequence[Value]) -> Counter[str]:
    """The product of all distinct index sizes: exact where fvcore reads numpy's rounded report."""
    equation = inputs[0].toIValue().replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    operands = list(inputs[1].node().inputs())
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, map(_shape, operands), strict=True):
        for name, size in zip(_axes(term, len(shape)), shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))  # axes under an ellipsis broadcast
    result = equation.partition("->")[2]
    contracted = {name for name in sizes if name not in result and not (len(name) > 1 and "..." in result)}
    if len(terms) == 1 or not contracted:
        return Counter(elementwise=math.prod(_shape(outputs[0])) if len(terms) > 1 else 0)
    part = "attention" if all(map(_is_activation, operands)) else "matmul"
    per_product = complex_product(*(_is_complex(v) for v in operands[:2])) or 1
    return Counter({part: per_product * math.prod(sizes.values())})


def _axes(term: str, dimensions: int) -> list[str]:
    """The names of a term's axes; those under an ellipsis are numbered from the last."""
    before, dots, after = term.partition("...")
    hidden = dimensions - len(before) - len(after) if dots else 0
    return [*before, *(f"...{n}" for n in range(hidden, 0, -1)), *after]


def _attention(inputs: Sequence[Value], outputs: Sequence[Value]) -> Counter[str]:
    """Scores and weighted values: B H Lq Lk (d + dv)."""
    (*batch, queries, width), key, value = (_shape(x) for x in inputs[:3])
    return Counter(attention=math.prod(batch) * queries * key[-2] * (width + value[-1]))


def _rfft(inputs: Sequence[Value], outputs: Sequence[Value]) -> Counter[str]:
    """From the number of bins, n // 2 + 1: a traced `n` is no constant. An odd n is seen when nothing is padded."""
    given, (*rows, bins) = _shape(inputs[0])[-1], _shape(outputs[0])
    length = given if given // 2 + 1 == bins else 2 * (bins - 1)
    return Counter(fft=real_fft(length, math.prod(rows)))


def _irfft(inputs: Sequence[Value], outputs: Sequence[Value]) -> Counter[str]:
    *rows, length = _shape(outputs[0])
    return Counter(fft=real_fft(length, math.prod(rows)))


def _fft(inputs: Sequence[Value], outputs: Sequence[Value]) -> Counter[str]:
    *rows, length = _shape(outputs[0])
    return Counter(fft=complex_fft(length, math.prod(rows)))


def _product(inputs: Sequence[Value], outputs: Sequence[Value]) -> Counter[str]:
    per_element = complex_product(_is_complex(inputs[0]), _is_complex(inputs[1]))
    elements = math.prod(_shape(outputs[0]))
    return Counter(fft=per_element * elements) if per_element else Counter(elementwise=elements)


def _elements(inputs: Sequence[Value], outputs: Sequence[Value]) -> Counter[str]:
    return Counter(elementwise=sum(math.prod(_shape(value)) for value in outputs))


def _nothing(inputs: Sequence[Value], outputs: Sequence[Value]) -> Counter[str]:
    return Counter()


def _opaque(operator: Any) -> Handle:
    """The formula that an operator of our own registered with torch, asked with the node's shapes."""

    def handle(inputs: Sequence[Value], outputs: Sequence[Value]) -> Counter[str]:
        arguments = [_shape(v) if v.type().kind() == "TensorType" else v.toIValue() for v in inputs]
        results = [_shape(v) for v in outputs]
        formula = _by_shapes(flop_registry[operator])
        flops = formula(*arguments, out_shape=results[0] if len(results) == 1 else tuple(results))
        return Counter({opaque_part(operator._qualified_op_name): flops // 2})

    return handle


def _by_shapes(formula: Callable[..., int]) -> Callable[..., int]:
    """torch wraps registered formulas to take tensors; underneath they take shapes."""
    return getattr(formula, "__wrapped__", formula)


def _is_activation(value: Value, seen: set[str] | None = None) -> bool:
    """Whether a value of the graph depends on x, t or y rather than on weights alone."""
    seen = set() if seen is None else seen
    if value.debugName() in seen:
        return False
    seen.add(value.debugName())
    node = value.node()
    if node.kind() == "prim::Param":
        return value.debugName() in _example_names(node)
    return any(_is_activation(source, seen) for source in node.inputs())


def _example_names(parameters: Any) -> set[str]:
    """The graph's first inputs are the network's, the rest its weights: the trace names them x, t, y, then numbers."""
    return {value.debugName() for value in parameters.outputs() if not value.debugName().isdigit()}


def own_handles() -> dict[str, Handle]:
    """Handles for every operator of ours that told torch what it costs."""
    own = [op for op in flop_registry if getattr(op, "_qualified_op_name", "aten::").split("::")[0] != "aten"]
    return {op._qualified_op_name: _opaque(op) for op in own}


HANDLES: dict[str, Handle] = {
    **{f"aten::{name}": _elements for name in ELEMENTWISE},
    **{f"aten::{name}_": _elements for name in ELEMENTWISE},
    **{f"aten::{name}": _nothing for name in FREE},
    "aten::linear": _linear,
    "aten::addmm": _addmm,
    "aten::matmul": _matmul,
    "aten::mm": _matmul,
    "aten::bmm": _matmul,
    "aten::baddbmm": _matmul,
    "aten::einsum": _einsum,
    "aten::_convolution": _convolution,
    "aten::scaled_dot_product_attention": _attention,
    "aten::fft_rfft": _rfft,
    "aten::fft_irfft": _irfft,
    "aten::fft_fft": _fft,
    "aten::fft_ifft": _fft,
    "aten::mul": _product,
    "aten::mul_": _product,
}
"""What a node costs, by the name of its operator in the graph."""
