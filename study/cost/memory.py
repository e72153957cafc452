"""How much memory a training step needs, by living through one on tensors that hold nothing.

The step itself runs under FakeTensorMode: every operator reports shapes, nothing is allocated, and a
tensor dies when the real one would. What is alive at each moment is then the prediction.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.denoiser import Denoiser, DenoiserConfig, require, require_choice
from study.cost.tracer import example_inputs, network

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one training step: what stays, what the backward pass needs, and the most alive at once.

    `peak` is not the sum of the others: gradients grow while activations die.
    """

    parameters: int  # and buffers, float32
    gradients: int
    optimiser: int  # AdamW's two moments
    averages: int  # exponential moving averages of the weights
    activations: int  # alive between the forward and the backward pass
    peak: int

    @property
    def persistent(self) -> int:
        """Alive from step to step."""
        return self.parameters + self.optimiser + self.averages

    @property
    def temporary(self) -> int:
        """Of the peak, neither state nor what the forward pass saved: gradients on their way and workspace."""
        return max(0, self.peak - self.persistent - self.activations)


class Training:
    """Forward, backward, clipping, AdamW and moving averages, as a run does them, on any kind of tensor."""

    def __init__(self, model: Denoiser, precision: Precision, averages: int = 1) -> None:
        self.model, self.precision = model.train(), precision
        self.averages = [_copy(model) for _ in range(averages)]
        self.parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        with self._autocast(x.device.type):
            output = self.model.denoise(x, t, y)  # `forward` reads the values of t and y, which fakes lack
        return nn.functional.mse_loss(output.float(), torch.zeros_like(output, dtype=torch.float32))

    def step(self, x: Tensor, t: Tensor, y: Tensor | None) -> None:
        self.forward(x, t, y).backward()
        self.update()

    def update(self) -> None:
        norm = get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        clip_grads_with_norm_(self.parameters, 1.0, norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            for average in self.averages:
                pairs = zip(average.parameters(), self.model.parameters(), strict=True)
                followed: list[Tensor] = [p for p, own in pairs if own.requires_grad]
                torch._foreach_lerp_(followed, self.parameters, 1e-3)

    def _autocast(self, device: str) -> AbstractContextManager[object]:
        dtype = AUTOCAST.get(self.precision)
        return torch.autocast(device, dtype) if dtype else nullcontext()


def _copy(model: Denoiser) -> Denoiser:
    """Not by `deepcopy`, which asks a fake tensor where its data is."""
    copied = network(model.config)
    copied.load_state_dict(model.state_dict())
    return copied.requires_grad_(False)


class Alive(TorchDispatchMode):
    """Bytes of all tensor memory that exists, now and at most; views and in-place results count once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self.add(x)
        return out

    def add(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known[key] = weakref.ref(storage, self._forget(key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> Callable[[object], None]:
        def forget(_: object) -> None:
            del self._known[key]
            self.now -= size

        return forget


def training_memory(
    config: DenoiserConfig, batch: int, precision: Precision = "fp32", device: str = "cpu", averages: int = 1
) -> TrainingMemory:
    """Predicted bytes of one training step at a batch size, all gradients in one backward pass."""
    require(batch > 0, "batch", batch, "a positive integer")
    require_choice("precision", precision, ("fp32", "bf16", "fp16"))
    with _fake() as alive, torch.device(device):
        model = network(config)
        parameters = alive.now
        training = Training(model, precision, averages)
        copies = alive.now - parameters
        training.step(*example_inputs(config, batch, device))  # the first step creates the moments
        moments = alive.now - parameters - copies
        inputs = example_inputs(config, batch, device)
        before, alive.peak = alive.now, alive.now
        loss = training.forward(*inputs)
        activations = alive.now - before
        loss.backward()
        del loss
        gradients = sum(p.grad.nbytes for p in training.parameters if p.grad is not None)
        training.update()
        return TrainingMemory(parameters, gradients, moments, copies, activations, alive.peak)


@contextmanager
def _fake() -> Iterator[Alive]:
    with FakeTensorMode(allow_non_fake_inputs=True), Alive() as alive:
        yield alive
