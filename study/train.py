"""Training: one step, its optimiser, its averages, and a validation loss that can tell two configs apart."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models import Denoiser, backbones
from study.captured_step import CapturedStep
from study.config import RunConfig, backbone_name
from study.data import load
from study.diffusion import make_process
from study.distributed import Ranks
from study.draws import Batch, Draws, generator
from study.optimizer import AUTOCAST, check_precision, clip_gradients, moment_shapes, new_optimizer
from study.parallel import (
    check_batch,
    check_splittable,
    is_split,
    local_of,
    new_parallel,
    recompute_blocks,
    whole_of,
)
from study.step_numbers import StepNumbers, renew

if TYPE_CHECKING:
    from study.sharding import Shards

F = TypeVar("F", bound=Callable[..., Any])
ALONE = Ranks()
VALIDATION_SEED = 0  # the same noise for every run, whatever its seed


class DivergedError(Exception):
    """The loss or its gradient is no longer finite."""

    def __init__(self, images: int, step: int) -> None:
        super().__init__(images, step)
        self.images, self.step = images, step

    def __str__(self) -> str:
        return f"loss or gradient not finite in step {self.step}, {self.images} images into training"


@dataclass(frozen=True)
class Validation:
    """Mean squared error on held-out images, the same images, noise and times for every run of a protocol."""

    bins: tuple[float, ...]  # mean per equal share of the way from clean to noise
    mean: float
    standard_error: float  # of the mean, over images
    images: int


class Trainer:
    """Everything that a training step changes, and the step itself."""

    def __init__(self, config: RunConfig, device: torch.device, ranks: Ranks = ALONE) -> None:
        """Several ranks `meet` before the first step; each then trains on its share of every batch.

        Each has all weights, averages and moments, or with `machine.shard` its part of them.
        """
        check_precision(config.train.precision, device)
        check_batch(config.train.batch, ranks)
        self.config, self.device, self.ranks = config, device, ranks
        self.process = make_process(config.process)
        self.sharded = config.machine.shard and ranks.world_size > 1
        self.shards: Shards | None = None
        self.network = new_network(config).to("cpu" if self.sharded else device)  # parts go there in `meet`
        if self.sharded:
            check_splittable(self.network)
        self.averages = [copy.deepcopy(self.network).requires_grad_(False).eval() for _ in config.train.ema]
        self._hold()
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")
        self.draws = Draws(load(config.data, "train").to(device), self.process, config.seeds, config.train.flip)
        # Now, for bad images must be refused before training.
        self.held_out = load(config.data, "heldout").ready(config.train.validate_images)
        if config.machine.checkpoint_activations:
            recompute_blocks(self.network)
        self.forward: nn.Module = compiled(self.network, config.machine.compile)
        self.parallel: DistributedDataParallel | None = None
        self.images = 0  # trained on so far
        self.logged = 0  # `images` when `take_loss` was last called
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._norm = torch.zeros((), device=device)
        self._diverged_at = torch.zeros((), dtype=torch.int64, device=device)  # images; 0: not diverged
        self.numbers = StepNumbers(config.train)
        self.captured = CapturedStep(self) if config.machine.compile == "graph" else None

    def meet(self) -> None:
        """Join the gradients of several ranks. All call it, once each is known to have got this far."""
        if self.sharded:
            self._split()
        elif self.ranks.world_size > 1:
            self.parallel = new_parallel(self.forward, self.device)
            self.forward = self.parallel
            self._settle()

    def _split(self) -> None:
        """Keep this rank's part of the weights and averages; moments follow the weights."""
        from study.sharding import Shards

        self._unsplit = copy.deepcopy(self.averages[0])
        self.shards = Shards(self.ranks, self.device)
        for network in (self.network, *self.averages):
            self.shards.split(network)
        self._hold()
        moments = {name for name in moment_shapes(self.optimizer) if not name.endswith("/step")}
        self._divided = moments | {name for name, tensor in self.tensors().items() if is_split(tensor)}

    def _hold(self) -> None:
        """From here on it is these parameters that are trained and averaged."""
        self.parameters: list[Tensor] = [p for p in self.network.parameters() if p.requires_grad]
        self.averaged = [_paired(average, self.network) for average in self.averages]
        self.optimizer = new_optimizer(self.network, self.config.train)

    @property
    def steps(self) -> int:
        return math.ceil(self.images / self.config.train.batch)

    def step(self) -> None:
        """One optimiser step on the next batch."""
        count = min(self.config.train.batch, self.config.train.images - self.images)
        self.numbers.decide(self.images, count, self.optimizer)
        if self.captured is not None and count == self.config.train.batch:
            self.captured(self.draws.batch(self.network, self.images, count))
        else:
            self._update(self._backward(count))
        self.images += count
        if self.device.type == "cpu" and self._diverged_at:  # a GPU would have to be waited for
            self.check_finite()

    def _backward(self, count: int) -> Tensor:
        """Gradients of the whole batch's mean loss, gathered over micro-batches and ranks; the summed loss comes back.

        Averaging over ranks of unequal shares would weigh images unequally: each rank contributes its share
        of the sum, times the number of ranks, which the average over ranks then undoes.
        """
        mine = self.ranks.share(count)
        weight = 1.0 if mine else 0.0  # a rank without images takes part with one that counts for nothing
        start, stop = (mine.start, mine.stop) if mine else (0, 1)
        batch = self.draws.batch(self.network, self.images, count, slice(start, stop))
        total = torch.zeros((), device=self.device)
        parts = _slices(stop - start, self.config.machine.micro_batch or count)
        weights = [weight] * len(parts) + [0.0] * self._idle_passes(count, len(parts))
        parts += [slice(0, 1)] * (len(weights) - len(parts))
        for number, (part, weight) in enumerate(zip(parts, weights, strict=True), 1):
            self.draws.seed_network(self.images + start + part.start)
            with self._summing(last=number == len(parts)):
                total = total + self._pass(_part_of(batch, part), weight, count)
        return self.ranks.add(total)

    def _pass(self, batch: Batch, weight: float, count: int) -> Tensor:
        """Add the gradients that these of `count` images contribute; their summed loss comes back."""
        x_t = self.process.add_noise(batch.x0, batch.t, batch.noise)
        with self.autocast():
            output = self.forward(x_t, batch.t, batch.y)
        losses = self.process.losses(output.float(), batch.x0, x_t, batch.t, batch.noise)
        loss = losses.total.sum() * weight
        self.scaler.scale(loss / (count / self.ranks.world_size)).backward()
        return loss.detach()

    def _update(self, loss: Tensor) -> None:
        """Weights and averages, by the gradients at hand."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        gradients = [local_of(p.grad) for p in self.parameters if p.grad is not None]
        norm = clip_gradients(gradients, self.config.train.clip, self.ranks.add if self.sharded else None)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for averaged, share in zip(self.averaged, self.numbers.renewals, strict=True):
                renew(averaged, self.parameters, share)
        self._note(loss, norm)

    def advance(self, x0: Tensor, t: Tensor, noise: Tensor, y: Tensor | None) -> Tensor:
        """All that the device does in a step on a whole batch alone, once the host has decided; the summed loss."""
        loss = self._pass(Batch(x0, t, noise, y), 1.0, len(x0))
        self._update(loss)
        return loss

    def _idle_passes(self, count: int, passes: int) -> int:
        """Weights that are split are gathered in every pass, for which all ranks must make as many."""
        largest_share = math.ceil(count / self.ranks.world_size)
        return math.ceil(largest_share / (self.config.machine.micro_batch or count)) - passes if self.sharded else 0

    def _summing(self, last: bool) -> AbstractContextManager[object]:
        """Gradients travel between ranks once per step, while the last micro-batch's are computed."""
        return nullcontext() if last or self.parallel is None else self.parallel.no_sync()

    def _settle(self) -> None:
        """DDP regroups gradients after its first backward pass, and groups decide in which order ranks are summed.

        That pass is done here, for nothing, so that a resumed run sums in the order of one that never stopped.
        """
        train = self.config.train
        usual = min(self.config.machine.micro_batch or train.batch, len(self.ranks.share(train.batch)))
        batch = self.draws.batch(self.network, 0, train.batch, slice(usual))
        with self.autocast():
            output = self.forward(self.process.add_noise(batch.x0, batch.t, batch.noise), batch.t, batch.y)
        (0 * output.float().sum()).backward()
        self.optimizer.zero_grad(set_to_none=True)

    def _note(self, loss: Tensor, norm: Tensor) -> None:
        """Keep the loss for the log, and where it first went wrong; only a CPU may read them now, a GPU would stall."""
        self._loss_sum += loss
        self._norm.copy_(norm)
        # fp16 overflows now and then by design: the scaler skips that step, and only the loss tells.
        suspect = loss if self.scaler.is_enabled() else loss + norm
        if self.device.type == "cpu" and math.isfinite(suspect):
            return
        first = (self._diverged_at == 0) & ~torch.isfinite(suspect)
        self._diverged_at.copy_(torch.where(first, self.numbers.seen, self._diverged_at))

    def check_finite(self) -> None:
        """Raise if any step so far was not finite; on an accelerator this waits for it."""
        collapsed = self.scaler.is_enabled() and self.scaler.get_scale() < 1  # every recent step overflowed
        at = int(self._diverged_at) or (self.images if collapsed else 0)
        if at:
            raise DivergedError(at, math.ceil(at / self.config.train.batch))

    def take_loss(self) -> dict[str, float]:
        """Mean loss since the last call, and the last gradient norm."""
        self.check_finite()
        loss = self._loss_sum.item() / (self.images - self.logged)
        self._loss_sum.zero_()
        self.logged = self.images
        return {"loss": loss, "grad_norm": self._norm.item(), "lr": self.numbers.rate}

    @torch.no_grad()
    def validate(self, average: int = 0, check: Callable[[], object] = lambda: None) -> Validation:
        """Score one set of averaged weights on every held-out image in every bin.

        Ranks take the batches in turn. `check` is called before each, as often on every rank, and may raise to stop.
        """
        train = self.config.train
        network = self.average(average).eval()  # which also forgets tables derived from its earlier weights
        count = min(train.validate_images, len(self.held_out))
        times = self.process.bin_times(train.validate_bins, count)
        losses = torch.zeros(train.validate_bins, count, dtype=torch.float64)
        noise = lru_cache(maxsize=1)(partial(self._bin_noise, count))
        batches = _slices(count, self.config.machine.sample_batch)
        parts = [(number, part) for number in range(train.validate_bins) for part in batches]
        for turn in range(self.ranks.rank, len(parts) + self.ranks.rank, self.ranks.world_size):
            check()
            if turn < len(parts):
                number, part = parts[turn]
                losses[number, part] = self._losses(network, part, times[number, part], noise(number)[part])
        self.ranks.add(losses)
        if not losses.isfinite().all():
            raise DivergedError(self.images, self.steps)
        per_image = losses.mean(dim=0)
        error = per_image.std().item() / math.sqrt(count) if count > 1 else 0.0
        bins = tuple(losses.mean(dim=1).tolist())
        return Validation(bins, per_image.mean().item(), error, count)

    def _bin_noise(self, count: int, number: int) -> Tensor:
        """(count, C, H, W) on the CPU, the same for every device."""
        shape = (count, *self.held_out.shape)
        return torch.randn(shape, generator=generator(torch.device("cpu"), VALIDATION_SEED, "validation", number))

    def _losses(self, network: Denoiser, part: slice, t: Tensor, noise: Tensor) -> Tensor:
        """(n,) float64 losses on the CPU, of that part of the held-out images at the times t (n,)."""
        held_out = self.held_out
        x0 = held_out.batch(torch.arange(part.start, part.stop))
        x, n, times = (values.to(self.device) for values in (x0, noise, t))
        y = held_out.labels[part].to(self.device) if self.config.backbone.classes else None
        x_t = self.process.add_noise(x, times, n)
        with self.autocast():
            output = network(x_t, times, y)
        return self.process.losses(output.float(), x, x_t, times, n).mse.double().cpu()

    def autocast(self) -> AbstractContextManager[object]:
        dtype = AUTOCAST.get(self.config.train.precision)
        # Weights that are split come and go with their block: copies of lower precision must not outlive them.
        return torch.autocast(self.device.type, dtype, cache_enabled=not self.sharded) if dtype else nullcontext()

    def average(self, index: int = 0) -> Denoiser:
        """One set of averaged weights, to be evaluated by each rank alone; if they are split, all must ask for it.

        They then get a copy, whole, and gone with its last user.
        """
        if self.shards is None:
            return self.averages[index]
        held = self.averages[index].state_dict()
        network = copy.deepcopy(self._unsplit).to(self.device)
        for name, tensor in network.state_dict().items():
            tensor.copy_(whole_of(held[name]))
        return network

    def fingerprint(self) -> str:
        """Equal on ranks whose weights are: after the same gradients, they must be. What is split is nowhere twice."""
        if self.sharded:
            return ""
        sums = torch.stack([parameter.detach().double().sum() for parameter in self.parameters])
        return str(sums.sum().item())

    def data_digests(self) -> dict[str, str]:
        """What it trains and validates on, to tell whether a resumed run still does."""
        return {"train": self.draws.images.sha256, "heldout": self.held_out.sha256}

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that the next step depends on, by name; of those that are split, this rank's part."""
        named = {f"network/{key}": value for key, value in self.network.state_dict().items()}
        for decay, average in zip(self.config.train.ema, self.averages, strict=True):
            named |= {f"ema/{decay}/{key}": value for key, value in average.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            named |= {f"optimizer/{index}/{key}": value for key, value in state.items()}
        return {**named, "loss_sum": self._loss_sum}

    def changing(self) -> dict[str, Tensor]:
        """All tensors that a step writes to."""
        return {**self.tensors(), "norm": self._norm, "diverged_at": self._diverged_at}

    def facts(self) -> dict[str, Any]:
        """All else that the next step depends on, as JSON."""
        return {"images": self.images, "logged": self.logged, "scaler": self.scaler.state_dict()}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Become the trainer that gave these `tensors()`, whole or as `own` left them, and `facts()`.

        Any that do not fit are refused.
        """
        self._check_fit(tensors)
        tensors = {name: self.own(name, tensor) for name, tensor in tensors.items()}
        self.network.load_state_dict(_below("network/", tensors))
        for decay, average in zip(self.config.train.ema, self.averages, strict=True):
            average.load_state_dict(_below(f"ema/{decay}/", tensors))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _below("optimizer/", tensors).items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        if facts["scaler"]:
            self.scaler.load_state_dict(dict(facts["scaler"]))
        self._loss_sum.copy_(tensors["loss_sum"])
        self.images, self.logged = int(facts["images"]), int(facts["logged"])
        if self.captured is not None:
            self.captured.forget()

    def own(self, name: str, tensor: Tensor) -> Tensor:
        """What this rank has of one of the tensors of a checkpoint."""
        if self.shards is None or is_split(tensor) or name not in self._divided:
            return tensor
        return self.shards.part_of(tensor)

    def _check_fit(self, tensors: Mapping[str, Tensor]) -> None:
        expected = {name: tuple(value.shape) for name, value in self.tensors().items()}
        expected |= moment_shapes(self.optimizer)
        given = {name: tuple(value.shape) for name, value in tensors.items()}
        wrong = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
        if wrong:
            name = wrong[0]
            raise ValueError(f"{name} has shape {given.get(name)}, expected {expected.get(name)}")


def new_network(config: RunConfig) -> Denoiser:
    """The run's backbone with fresh weights, on the CPU whatever the device: they depend on the seed alone."""
    torch.manual_seed(config.seeds.init)
    return backbones()[backbone_name(config.backbone)].denoiser(config.backbone)


def compiled(network: F, how: bool | str) -> F:
    """By a mode of `torch.compile`; `graph` is none, the network stays as it is."""
    if not how or how == "graph":
        return network
    return torch.compile(network, mode=how if isinstance(how, str) else None)  # type: ignore[return-value]


def _paired(average: Denoiser, network: Denoiser) -> list[Tensor]:
    """The average's parameters that pair with the network's trainable ones.

    The parameters themselves: a change through `.data` moves no version counter, and on an accelerator
    tables derived from them (S4D's spectra) would stay those of older weights.
    """
    pairs = zip(average.parameters(), network.parameters(), strict=True)
    return [mine for mine, theirs in pairs if theirs.requires_grad]


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _part_of(batch: Batch, part: slice) -> Batch:
    return Batch(batch.x0[part], batch.t[part], batch.noise[part], None if batch.y is None else batch.y[part])


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
