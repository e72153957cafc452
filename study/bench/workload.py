"""What is timed: a cell's subject, built with fixed inputs, as named phases of plain calls."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from models import Denoiser
from models.denoiser import DenoiserConfig
from models.dit import Attention
from models.ssm.core import textbook
from models.ssm.s4d import S4D
from study.bench.config import Cell, Layer, Network, Spin
from study.bench.peers import agreement, load_peer
from study.bench.timing import Work
from study.captured import captured
from study.cost.tracer import network
from study.diffusion import GaussianConfig, SamplerConfig, guided, make_process
from study.optimizer import AUTOCAST, check_precision
from study.train import compiled

RATE = 1e-4  # of the timed optimiser: DiT's
NUDGE = 0.02  # standard deviation added to every weight: fresh networks predict zeros, which agree with anything
PHASES = {"forward": ("call",), "train": ("forward", "backward", "optimiser"), "sample": ("sample",)}


def phases_of(cell: Cell) -> tuple[str, ...]:
    """The names that `make_work` gives, without building anything."""
    names = PHASES[cell.mode]
    return names[:2] if cell.mode == "train" and isinstance(cell.subject, Layer) else names


def make_work(cell: Cell) -> tuple[Work, dict[str, str]]:
    """The phases of one call, and facts about how they were built."""
    device = torch.device(cell.device)
    check_precision(cell.dtype, device)
    torch.manual_seed(0)
    if isinstance(cell.subject, Spin):
        return {name: spinning(cell.subject.units) for name in phases_of(cell)}, {}
    if isinstance(cell.subject, Layer):
        return _layer_work(cell, cell.subject, device), {}
    return _network_work(cell, cell.subject, device)


def spinning(units: int) -> Callable[[], object]:
    def spin() -> float:
        total = 0.0
        for step in range(20_000 * units):
            total += step
        return total

    return spin


def autocast(cell: Cell, device: torch.device) -> AbstractContextManager[object]:
    dtype = AUTOCAST.get(cell.dtype)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def inputs(config: DenoiserConfig, batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """x (B,C,H,W), t (B,), y (B,) or None, the same for every subject at a size."""
    x = torch.randn(batch, config.channels, *config.size, generator=torch.Generator().manual_seed(1))
    t = torch.linspace(1, 999, batch)
    y = torch.arange(batch) % config.classes if config.classes else None
    return x.to(device), t.to(device), None if y is None else y.to(device)


def nudged(model: Denoiser) -> Denoiser:
    """Every weight off its initial value, gates and zero-initialised outputs included."""
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(NUDGE * torch.randn(parameter.shape, generator=source))
    return model


def _network_work(cell: Cell, subject: Network, device: torch.device) -> tuple[Work, dict[str, str]]:
    ours = nudged(network(subject.config))
    model: nn.Module = ours.to(device)
    facts = {}
    if subject.peer:
        model = load_peer(subject.peer, ours).to(device)
        facts["agreement"] = agreement(subject.name, ours, model, inputs(subject.config, 2, device))
    forward = compiled(model, cell.compile)
    x, t, y = inputs(subject.config, cell.batch, device)
    if cell.mode == "train":
        return _training(cell, subject.config, model, forward, (x, t, y)), facts
    model.eval()
    sampler = SamplerConfig("ddim", str(cell.steps), guidance=cell.guidance)

    def call() -> object:
        with torch.no_grad(), autocast(cell, device):
            return forward(x, t, y)

    def sample() -> object:
        with torch.no_grad(), autocast(cell, device):
            return process.sample(guided(sampled, y, sampler), x, sampler, lambda step: torch.randn_like(x))

    # As it is sampled from: what is compiled or foreign stays as it is.
    sampled: Any = captured(ours, device) if forward is ours else forward
    process = make_process(_process(subject.config))
    return ({"sample": sample} if cell.mode == "sample" else {"call": call}), facts


def _process(config: DenoiserConfig) -> GaussianConfig:
    return GaussianConfig(variance="learned_range" if config.learn_sigma else "fixed_small")


def _training(
    cell: Cell,
    config: DenoiserConfig,
    model: nn.Module,
    forward: Callable[..., Tensor],
    given: tuple[Tensor, Tensor, Tensor | None],
) -> Work:
    """One step of diffusion training on a fixed batch: network and loss, gradients, AdamW."""
    model.train()
    x, t, y = given
    process = make_process(_process(config))
    times = t.round()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).to(x.device)
    noised = process.add_noise(x, times, noise)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, fused=True)
    scaler = torch.amp.GradScaler(x.device.type, enabled=cell.dtype == "fp16")
    losses: list[Tensor] = []

    def loss() -> None:
        with autocast(cell, x.device):
            output = forward(noised, times, y)
        losses[:] = [scaler.scale(process.losses(output.float(), x, noised, times, noise).total.mean())]

    def optimise() -> None:
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return {"forward": loss, "backward": lambda: losses.pop().backward(), "optimiser": optimise}


def _layer_work(cell: Cell, layer: Layer, device: torch.device) -> Work:
    """The mixer alone on (B, L, D); in training, to the gradients of its weights and of its input."""
    if layer.form == "attention":
        module: nn.Module = Attention(layer.width, layer.heads)
    else:
        module = S4D(layer.width, layer.state, join=layer.join)
    module = module.to(device).train(cell.mode == "train")
    u = torch.randn(cell.batch, layer.length, layer.width, generator=torch.Generator().manual_seed(1)).to(device)
    form: Callable[[Tensor], Tensor] = module
    if isinstance(module, S4D) and layer.form == "s4d-textbook":
        s4d = module
        form = lambda u: textbook(u, s4d.modes(), s4d.D)  # noqa: E731
    form = compiled(form, cell.compile)
    if cell.mode == "forward":
        return {"call": torch.no_grad()(lambda: _within(cell, device, form, u))}
    u.requires_grad_()
    outputs: list[Tensor] = []
    with torch.no_grad():
        grad = torch.randn(form(u).shape, generator=torch.Generator().manual_seed(2)).to(device)
    leaves = [u, *module.parameters()]

    def forward() -> None:
        outputs[:] = [_within(cell, device, form, u)]

    def backward() -> None:
        y = outputs.pop()
        torch.autograd.grad(y, leaves, grad.to(y.dtype))

    return {"forward": forward, "backward": backward}


def _within(cell: Cell, device: torch.device, form: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    with autocast(cell, device):
        return form(u)
