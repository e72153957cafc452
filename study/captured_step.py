"""A whole training step replayed as one CUDA graph (`machine.compile=graph`), for networks that launching bounds.

Captured is all that the device does with a batch: noise, network, loss, gradients, clipping, AdamW, averages, what the
log wants. Outside stay the draws, whose generators are seeded anew in every step and whose results are copied in, and
the few numbers that the host decides, which a graph reads from 0-d tensors. Eager steps read them there too, and are
the same kernels: which steps were replayed, and when a run was resumed, changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models import Denoiser
from models.denoiser import require
from study.captured import AGREEMENT, Recorder, Replay, copied, in_a_line
from study.draws import Batch

if TYPE_CHECKING:
    from study.train import Trainer

log = logging.getLogger(__name__)


def check_capturable(network: Denoiser, device: torch.device, ranks: int) -> None:
    """Refuse in one line what a graph cannot hold."""
    name, value = "machine.compile", "graph"
    require(not draws_numbers(network, device), name, value, "false with dropout: a replay would repeat its numbers")
    require(ranks == 1, name, value, f"false or true on {ranks} ranks: a graph is of one")
    require(device.type == "cuda", name, value, f"false or true on {device.type}: graphs are CUDA's")


@torch.no_grad()
def draws_numbers(network: Denoiser, device: torch.device) -> bool:
    """Whether its forward pass in training moves its device's generator, as dropout and stochastic depth do."""
    config = network.config
    x, t = torch.zeros(1, config.channels, *config.size, device=device), torch.zeros(1, device=device)
    y = torch.zeros(1, dtype=torch.int64, device=device) if config.classes else None
    before = _generator_state(device)
    network(x, t, y)
    return not torch.equal(_generator_state(device), before)


def _generator_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


class CapturedStep:
    """`trainer.advance` on whole batches: once launched as ever, once checked against its replay, then replayed."""

    def __init__(self, trainer: Trainer) -> None:
        check_capturable(trainer.network, trainer.device, trainer.ranks.world_size)
        trainer.numbers.on(trainer.device, trainer.optimizer)
        self.trainer = trainer
        self._recorder = Recorder(trainer.advance, trainer.device)
        self._replay: Replay | None = None
        self._is_warm = self._refused = False

    def __call__(self, batch: Batch) -> None:
        if self._refused:
            self.trainer.advance(*batch)
        elif self._replay is not None:
            self._replay(*batch)
            # Tables that a network derived from its weights go by their versions, of which a replay knows nothing.
            for average in self.trainer.averaged:
                torch.autograd.graph.increment_version(average)
        elif self._is_warm:
            self._first(batch)
        else:
            self._recorder.carry_out(batch)  # makes the moments, too, and tables of the process
            self._is_warm = True

    def forget(self) -> None:
        """The graph writes to moments that are no longer the optimiser's."""
        self._replay, self._is_warm = None, False

    def _first(self, batch: Batch) -> None:
        """A step as ever, which is the one that stays, and from the same state its replay, to be compared."""
        before = self._copied()
        self._recorder.carry_out(batch)
        launched = self._copied()
        try:
            self._put(before)
            with _capturable(self.trainer.optimizer):
                replay = self._recorder.capture(copied(batch))
            replay(*batch)
            _check(before, launched, self._copied())
            self._replay = replay
        except RuntimeError as error:  # which too little memory is, too
            self._refused = True
            self.trainer.optimizer.zero_grad(set_to_none=True)
            log.warning("the step is not captured as a CUDA graph, training goes on without: %s", in_a_line(error))
        finally:
            self._put(launched)

    def _copied(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.trainer.changing().items()}

    def _put(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in self.trainer.changing().items():
            tensor.copy_(tensors[name])


def _check(before: dict[str, Tensor], launched: dict[str, Tensor], replayed: dict[str, Tensor]) -> None:
    """Loss and weights must have moved alike; numbers that are not finite are the network's own."""
    for what in ("loss_sum", "network/"):
        moved, gap = _distance(before, launched, what), _distance(launched, replayed, what)
        if moved.isfinite() and not gap <= AGREEMENT * moved:
            raise RuntimeError(f"a replay gives {'another loss' if what == 'loss_sum' else 'other weights'}")


def _distance(a: dict[str, Tensor], b: dict[str, Tensor], what: str) -> Tensor:
    """Norm of the difference of all tensors whose names begin so."""
    return torch.stack([(a[name].double() - b[name].double()).norm() for name in a if name.startswith(what)]).norm()


@contextmanager
def _capturable(optimizer: torch.optim.AdamW) -> Iterator[None]:
    """AdamW asks for the word; said only here, for where nothing is captured it warns of it."""
    for group in optimizer.param_groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in optimizer.param_groups:
            group["capturable"] = False
