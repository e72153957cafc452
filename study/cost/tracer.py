"""Method two: torch's FlopCounterMode on the meta device, with the formulas it lacks and no silent zeros.

Each network is traced at batch 1 and batch 2. What grows is the cost of an image; what does not is
kernel generation, whatever operators it is made of.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from models.denoiser import Denoiser, DenoiserConfig, backbones
from models.macs import Macs
from study.cost.operators import FEW_ELEMENTS, FORMULAS, UnknownOperatorError, is_elementwise, is_free, opaque_part

Parts = Counter[str]
ATTENTION = "scaled_dot_product"
PRODUCTS = ("bmm", "baddbmm")  # of two activations in attention, of weights and activations in a linear map


@dataclass(frozen=True)
class Trace:
    """What the tracer saw of one image, in whole and by module path ("" is the network)."""

    macs: Macs
    by_module: dict[str, Macs]


class PartCounter(FlopCounterMode):
    """FlopCounterMode that also files each count under a part of `Macs` and refuses unknown operators."""

    def __init__(self, inputs: tuple[Tensor | None, ...]) -> None:
        super().__init__(display=False, custom_mapping=FORMULAS)
        self.parts: dict[str, Parts] = defaultdict(Counter)
        self._activations = {_storage(x) for x in inputs if x is not None}

    def _count_flops(self, func_packet: Any, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        active = [_storage(x) in self._activations for x in tensors]
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if any(active):
            self._activations.update(map(_storage, outputs))
        before = self.get_total_flops()
        super()._count_flops(func_packet, out, args, kwargs)
        flops = self.get_total_flops() - before
        self._file(func_packet, flops, sum(active), sum(x.numel() for x in outputs))
        return out

    def _file(self, packet: Any, flops: int, active: int, elements: int) -> None:
        """Add one operator's work to every module it ran in."""
        namespace, name = packet._qualified_op_name.split("::")
        known = packet in self.flop_registry
        if flops:
            part, count = self._part(namespace, name, active), flops // 2
        elif is_elementwise(name):
            part, count = "elementwise", elements
        elif known or is_free(name) or namespace == "prim" or elements <= FEW_ELEMENTS:
            return
        else:
            raise UnknownOperatorError(f"{namespace}::{name}", max(self.mod_tracker.parents, key=_depth), elements)
        for module in self.mod_tracker.parents:
            self.parts[module][part] += count

    def _part(self, namespace: str, name: str, active: int) -> str:
        if namespace != "aten":
            return opaque_part(name)
        if ATTENTION in name or (name in PRODUCTS and active >= 2):
            return "attention"
        return "fft" if name.startswith("_fft") or name == "mul" else "matmul"


def _storage(x: Tensor) -> StorageWeakRef:
    """Identity of a tensor's memory that views share; the weak reference keeps its address from reuse."""
    return StorageWeakRef(x.untyped_storage())


def _depth(module: str) -> tuple[int, int]:
    return (-1, 0) if module == "Global" else (module.count("."), len(module))


class _Uninitialised(TorchFunctionMode):
    """Leaves weights as they are: on meta there is nothing to draw, and drawing it takes a second to import."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        func = torch.empty if func in (torch.rand, torch.randn) else func
        return func(*args, **(kwargs or {}))


def on_meta(config: DenoiserConfig) -> Denoiser:
    """The network without memory behind it."""
    with torch.device("meta"), _Uninitialised():
        return network(config).to("meta")


def network(config: DenoiserConfig) -> Denoiser:
    """The registered class that this config builds."""
    for backbone in backbones().values():
        if backbone.config is type(config):
            return backbone.denoiser(config)
    raise ValueError(f"no backbone is registered for {type(config).__name__}")


def example_inputs(config: DenoiserConfig, batch: int, device: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Zeros of the shapes a network takes: x (B,C,H,W), t (B,), y (B,) or None."""
    x = torch.zeros(batch, config.channels, *config.size, device=device)
    t = torch.zeros(batch, dtype=torch.int64, device=device)
    return x, t, torch.zeros_like(t) if config.classes else None


@contextmanager
def fast_paths_off() -> Iterator[None]:
    """Modules that swap themselves for one opaque fused call in eval mode hide their work from tracers."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def trace(config: DenoiserConfig) -> Trace:
    """Forward MACs of one image, measured on the meta device."""
    return trace_network(on_meta(config), config)


def trace_network(model: torch.nn.Module, config: DenoiserConfig) -> Trace:
    once, twice = (_parts(model, config, batch) for batch in (1, 2))
    root = type(model).__name__
    by_module = {
        _relative(module, root): per_image(once[module], twice[module]) for module in twice if module != "Global"
    }
    return Trace(per_image(once["Global"], twice["Global"]), by_module)


def _relative(module: str, root: str) -> str:
    return module.removeprefix(root).removeprefix(".")


def _parts(model: torch.nn.Module, config: DenoiserConfig, batch: int) -> dict[str, Parts]:
    inputs = example_inputs(config, batch, "meta")
    with fast_paths_off(), PartCounter(inputs) as counter:
        model.train()(*inputs)
    filed = sum(count for part, count in counter.parts["Global"].items() if part != "elementwise")
    if 2 * filed != counter.get_total_flops():
        raise RuntimeError(f"filed {2 * filed} of the {counter.get_total_flops()} FLOPs that torch counted")
    return dict(counter.parts)


def per_image(once: Parts, twice: Parts) -> Macs:
    """Split counts at batch 1 and 2 into what an image costs and what a call costs whatever its batch."""
    names = [field.name for field in fields(Macs)]
    growing = {part: twice[part] - once[part] for part in names if part != "kernel"}
    constant = {part: 2 * once[part] - twice[part] for part in names if part != "elementwise"}
    return Macs(**growing, kernel=sum(constant.values()))


def training_macs(config: DenoiserConfig) -> Macs:
    """Exact MACs of one image's forward and backward pass; `kernel` is paid once per step, not per image."""
    model = on_meta(config)
    once, twice = (_forward_and_backward(model, config, batch) for batch in (1, 2))
    return Macs(matmul=twice - once, kernel=2 * once - twice)


def _forward_and_backward(model: Denoiser, config: DenoiserConfig, batch: int) -> int:
    inputs = example_inputs(config, batch, "meta")
    with fast_paths_off(), PartCounter(inputs) as counter:
        model.train()(*inputs).sum().backward()
    return int(counter.get_total_flops()) // 2
