"""A denoiser's evaluations while sampling, replayed as CUDA graphs: launching the kernels of a small network takes
longer than running them.

An explicit capture and not `torch.compile(mode="reduce-overhead")`: it records the kernels of the eager network, so
samples stay what they were; it takes two evaluations where compiling takes minutes; and it sees into opaque operators.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.denoiser import Denoiser, DenoiserConfig
from study.process.base import Network

log = logging.getLogger(__name__)

AGREEMENT = 1e-2  # how far a replay may be from what it was captured from; for a network, of its largest output

Inputs = tuple[Tensor, Tensor, Tensor | None]
"""x (B,C,H,W), t (B,), y (B,) or None."""


def captured(denoiser: Denoiser, device: torch.device) -> Network:
    """On CUDA its evaluations become replays, which hold only while its weights stay as they are."""
    return CapturedDenoiser(denoiser, device) if device.type == "cuda" else denoiser


class Replay(NamedTuple):
    """One graph: it reads and writes the very memory it was captured with."""

    graph: torch.cuda.CUDAGraph
    buffers: Sequence[Tensor | None]
    output: Tensor  # the next replay, of this graph or of one that shares its memory, writes over it

    def __call__(self, *given: Tensor | None) -> Tensor:
        for buffer, value in zip(self.buffers, given, strict=True):
            if buffer is not None and value is not None:
                buffer.copy_(value)
        self.graph.replay()
        return self.output


class Recorder:
    """Carries out a computation on the stream that captures it, and captures it."""

    def __init__(self, compute: Callable[..., Tensor], device: torch.device) -> None:
        self.compute, self.device = compute, device
        self._stream = torch.cuda.Stream(device)

    def carry_out(self, given: Sequence[Tensor | None]) -> Tensor:
        """Compiles kernels, fills caches of tables and makes libraries' handles, none of which a capture may do."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            output = self.compute(*given)
        current.wait_stream(self._stream)
        return output.clone()  # in memory of the stream that goes on with it

    def capture(self, buffers: Sequence[Tensor | None], beside: Replay | None = None) -> Replay:
        """Of what `compute` does to the `buffers`, which a capture alone does not do.

        Into the memory of the graph `beside` it, which is safe as long as neither runs while the other does.
        """
        pool = beside and beside.graph.pool()
        graph = torch.cuda.CUDAGraph()
        kind = self.device.type
        # Weights that autocast keeps in lower precision are gone when it ends: here each replay makes its own.
        autocast = torch.autocast(
            kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind), cache_enabled=False
        )
        # Only this thread's calls can spoil the capture: another may be copying a checkpoint.
        with autocast, torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
            output = self.compute(*buffers)
        return Replay(graph, buffers, output)


class CapturedDenoiser:
    """One graph for each shape of the inputs: of whole batches and the last one, with guidance and without."""

    def __init__(self, denoiser: Denoiser, device: torch.device) -> None:
        self.denoiser = denoiser
        self._recorder = Recorder(denoiser, device)
        self._replays: dict[tuple[object, ...], Replay] = {}
        self._refused = False

    @property
    def config(self) -> DenoiserConfig:
        return self.denoiser.config

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None, /) -> Tensor:
        if self._refused:
            return self.denoiser(x, t, y)
        key = tuple(None if value is None else (value.shape, value.dtype) for value in (x, t, y))
        replay = self._replays.get(key)
        return replay(x, t, y).clone() if replay else self._first(key, (x, t, y))

    def _first(self, key: tuple[object, ...], given: Inputs) -> Tensor:
        """Evaluate as ever, then capture the same evaluation for those to come; errors of the network are its own."""
        buffers = copied(given)
        output = self._recorder.carry_out(buffers)
        try:
            replay = self._recorder.capture(buffers, beside=next(iter(self._replays.values()), None))
            _check(replay(*given), output)
            self._replays[key] = replay
        except RuntimeError as error:  # which too little memory is, too
            self._refused = True
            self._replays.clear()
            log.warning("the network is not captured as a CUDA graph, sampling goes on without: %s", in_a_line(error))
        return output


def _check(replayed: Tensor, output: Tensor) -> None:
    """Once per graph, at the price of waiting for it: what was not captured right must never become an image."""
    allowed = AGREEMENT * output.nan_to_num().abs().max().item()
    if not torch.allclose(replayed, output, rtol=0, atol=allowed, equal_nan=True):
        raise RuntimeError("a replay gives another output than the network")


def copied(given: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Buffers for a capture."""
    return [None if value is None else value.clone() for value in given]


def in_a_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
