"""A denoiser's evaluations while sampling, replayed as CUDA graphs: launching the kernels of a small network takes
longer than running them.

An explicit capture and not `torch.compile(mode="reduce-overhead")`: it records the kernels of the eager network, so
samples stay what they were; it takes two evaluations where compiling takes minutes; and it sees into opaque operators.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import Tensor

from models.denoiser import Denoiser, DenoiserConfig
from study.process.base import Network

log = logging.getLogger(__name__)

AGREEMENT = 1e-2  # of the largest output: how far a replay may be from the evaluation it was captured from

Inputs = tuple[Tensor, Tensor, Tensor | None]
"""x (B,C,H,W), t (B,), y (B,) or None."""


def captured(denoiser: Denoiser, device: torch.device) -> Network:
    """On CUDA its evaluations become replays, which hold only while its weights stay as they are."""
    return CapturedDenoiser(denoiser, device) if device.type == "cuda" else denoiser


class Replay(NamedTuple):
    """One graph: it reads and writes the very memory it was captured with."""

    graph: torch.cuda.CUDAGraph
    buffers: Inputs
    output: Tensor

    def __call__(self, *given: Tensor | None) -> Tensor:
        for buffer, value in zip(self.buffers, given, strict=True):
            if buffer is not None and value is not None:
                buffer.copy_(value)
        self.graph.replay()
        return self.output.clone()  # the next replay, of this graph or of one that shares its memory, writes over it


class CapturedDenoiser:
    """One graph for each shape of the inputs: of whole batches and the last one, with guidance and without."""

    def __init__(self, denoiser: Denoiser, device: torch.device) -> None:
        self.denoiser, self.device = denoiser, device
        self._replays: dict[tuple[object, ...], Replay] = {}
        self._stream = torch.cuda.Stream(device)
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
        return replay(x, t, y) if replay else self._first(key, (x, t, y))

    def _first(self, key: tuple[object, ...], given: Inputs) -> Tensor:
        """Evaluate as ever, then capture the same evaluation for those to come; errors of the network are its own."""
        x, t, y = given
        buffers = (x.clone(), t.clone(), None if y is None else y.clone())
        output = self._evaluated(buffers)
        try:
            replay = self._capture(buffers)
            self._check(replay(*given), output)
            self._replays[key] = replay
        except RuntimeError as error:  # which too little memory is, too
            self._refused = True
            self._replays.clear()
            log.warning("the network is not captured as a CUDA graph, sampling goes on without: %s", _line(error))
        return output

    def _evaluated(self, buffers: Inputs) -> Tensor:
        """Compiles kernels, fills caches of tables and makes libraries' handles, none of which a capture may do."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            output: Tensor = self.denoiser(*buffers)
        current.wait_stream(self._stream)
        return output.clone()  # in memory of the stream that goes on with it

    def _capture(self, buffers: Inputs) -> Replay:
        """Into the memory that all graphs share, which is safe as none runs beside another."""
        graph = torch.cuda.CUDAGraph()
        pool = next((replay.graph.pool() for replay in self._replays.values()), None)
        kind = self.device.type
        # Weights that autocast keeps in lower precision are gone when it ends: here each replay makes its own.
        autocast = torch.autocast(
            kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind), cache_enabled=False
        )
        # Only this thread's calls can spoil the capture: another may be copying a checkpoint.
        with autocast, torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
            output: Tensor = self.denoiser(*buffers)
        return Replay(graph, buffers, output)

    def _check(self, replayed: Tensor, output: Tensor) -> None:
        """Once per graph, at the price of waiting for it: what was not captured right must never become an image."""
        allowed = AGREEMENT * output.nan_to_num().abs().max().item()
        if not torch.allclose(replayed, output, rtol=0, atol=allowed, equal_nan=True):
            raise RuntimeError("a replay gives another output than the network")


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
