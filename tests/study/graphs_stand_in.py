"""A stand-in for CUDA's graphs on a CPU: it records operators and runs them again on the same memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """As a CUDA graph does, keeps what is to be done to which memory, and none of the Python that decided it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self._known: dict[int, tuple[UntypedStorage, UntypedStorage] | None] = {}  # by address; None: made here

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in tensors((args, kwargs)):
            storage = given.untyped_storage()
            if storage.data_ptr() not in self._known:
                self._known[storage.data_ptr()] = storage, storage.clone()
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, tensors(made)))
        for output in tensors(made):
            self._known.setdefault(output.untyped_storage().data_ptr(), None)
        return made

    def undo(self) -> None:
        """A capture carries nothing out: what was there before is as it was."""
        for found in filter(None, self._known.values()):
            found[0].copy_(found[1])


def tensors(made: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]


class Graph:
    """In the place of `torch.cuda.CUDAGraph`."""

    made: list[Graph]
    spoil: Callable[[], None] = staticmethod(lambda: None)
    pool_given: object = None

    def __init__(self) -> None:
        self.tape, self.replays = Tape(), 0
        Graph.made.append(self)

    def pool(self) -> tuple[int, int]:
        return 0, 1

    @torch.no_grad()
    def replay(self) -> None:
        """No version counter hears of it, as none hears of what a graph writes."""
        self.replays += 1
        for func, args, kwargs, outputs in self.tape.calls:
            with torch.autograd._unsafe_preserve_version_counter(tuple(tensors((args, kwargs, outputs)))):
                for output, again in zip(outputs, tensors(func(*args, **kwargs)), strict=True):
                    if output.data_ptr() != again.data_ptr():  # else a view, or in place
                        output.copy_(again)
        Graph.spoil()

    @property
    def operators(self) -> set[str]:
        return {str(func) for func, *_ in self.tape.calls}


class Stream:
    entered: list[Stream]

    def __init__(self, device: torch.device) -> None: ...

    def wait_stream(self, other: Stream) -> None: ...


def install(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Those captured so far; on a CPU."""

    @contextmanager
    def graph(made: Graph, pool: object, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        assert Stream.entered, "not warmed up"
        assert Stream.entered[-1] is stream, "warmed up on another stream than the one that captures"
        assert capture_error_mode == "thread_local"
        assert not torch.is_autocast_cache_enabled()
        made.pool_given = pool
        try:
            with made.tape:
                yield
        finally:
            made.tape.undo()

    @contextmanager
    def entered(stream: Stream) -> Iterator[None]:
        Stream.entered.append(stream)
        yield

    monkeypatch.setattr(Graph, "made", [], raising=False)
    monkeypatch.setattr(Stream, "entered", [], raising=False)
    for name, stand_in in {
        "CUDAGraph": Graph,
        "Stream": Stream,
        "current_stream": Stream,
        "graph": graph,
        "stream": entered,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return Graph.made


def refuse(*_: object, **__: object) -> None:
    """In the place of a capture that CUDA does not permit."""
    raise RuntimeError("operation not permitted when stream is capturing\nCUDA error: and so on")


def spoil() -> None:
    """After a replay, the first output is another: with it all that was computed from it should be."""
    Graph.made[-1].tape.calls[-1][3][0].fill_(7)
