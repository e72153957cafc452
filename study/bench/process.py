"""The parent's end of a cell's process: start it fresh, ask it one thing at a time, always end it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from abc import ABC, abstractmethod
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from study.bench.cell import serve
from study.bench.config import Cell
from study.bench.timing import Sample
from study.launch.server import THREAD_VARIABLES
from study.strict import to_tree

PRELOADED = ["study.bench.cell", "study.bench.__main__", "torch._dynamo"]
"""Imported once by the server that processes are forked from; it computes nothing, so each of them is fresh."""


LONGEST_WARM_UP = 3.0  # seconds


class DoesNotFitError(Exception):
    """The cell is out of memory: a result, not a failure."""


class RefusedError(ValueError):
    """The cell cannot be timed as asked; the message is one line."""


class Answering(ABC):
    """The parent's end of a process that `cell.serve`s: one question at a time."""

    def __init__(self, cell: Cell, end: Connection, longest_warm_up: float = LONGEST_WARM_UP) -> None:
        self.cell, self.longest_warm_up, self._end = cell, longest_warm_up, end

    def open(self) -> dict[str, Any]:
        """Build and warm up; what that was like."""
        return self.ask("open", longest=self.longest_warm_up)

    def block(self, samples: int, seconds: float) -> list[Sample]:
        taken = self.ask("block", samples=samples, seconds=seconds)["samples"]
        return [Sample(tuple(numbers[:-2]), *numbers[-2:]) for numbers in taken]

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        try:
            self._end.send({"do": do, **arguments})
            answer: dict[str, Any] = self._end.recv()
        except (EOFError, OSError):
            raise self.ended() from None
        if "out_of_memory" in answer:
            raise DoesNotFitError(answer["out_of_memory"])
        if "refused" in answer:
            raise RefusedError(answer["refused"])
        return answer

    @abstractmethod
    def ended(self) -> Exception:
        """Why it no longer answers."""

    def close(self) -> None:
        """The other end sees the end of its questions, and ends."""
        self._end.close()


class CellProcess(Answering):
    """One fresh process of one cell."""

    def __init__(self, cell: Cell, longest_warm_up: float = LONGEST_WARM_UP) -> None:
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(cell.threads)))  # read as libraries are loaded
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        end, theirs = context.Pipe()
        super().__init__(cell, end, longest_warm_up)
        self._process = context.Process(target=serve, args=(theirs, to_tree(cell)), daemon=True)
        self._process.start()
        theirs.close()

    def ended(self) -> Exception:
        self._process.join()
        code = self._process.exitcode
        if code == -signal.SIGKILL:
            return DoesNotFitError("its process was killed (signal 9), as the kernel does when memory is gone")
        return RefusedError(f"{self.cell.subject.name}: its process ended by itself with status {code}")

    def close(self) -> None:
        """End it: at once if it is idle, by force if it is not."""
        super().close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self._process.kill()
        self.close()


def ask_alone(cell: Cell, do: str, **arguments: Any) -> dict[str, Any]:
    """One question to a fresh process that has the machine to itself."""
    with CellProcess(cell) as process:
        return process.ask(do, **arguments)
