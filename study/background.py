"""Checkpoints off the training path: their tensors are copied, and written while training goes on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from study.parallel import whole_of

log = logging.getLogger(__name__)


class HostCopy:
    """Tensors as they were, in memory of the host that is used again for every copy: as much as a checkpoint takes."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
        """All of them, whole, until the next call; nothing for a rank that takes part only to give its parts."""
        copies = {}
        for name, tensor in tensors.items():
            whole = whole_of(tensor.detach())
            if keep:
                copies[name] = self._buffer(name, whole).copy_(whole)
        return copies

    def _buffer(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self._buffers:
            self._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        return self._buffers[name]


class Background:
    """One thing after another done in a thread. What goes wrong there is raised here, at the next call."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def start(self, work: Callable[[], object]) -> None:
        self.wait()
        self._thread = threading.Thread(target=self._do, args=(work,), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until what was started is done; raise if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise if what was started is known to have failed."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Wait when there is no one left to raise to."""
        try:
            self.wait()
        except Exception as error:
            log.error("%s", error)

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            self._error = error
