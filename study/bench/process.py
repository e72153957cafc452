"""The parent's end of a cell's process: start it fresh, ask it one thing at a time, always end it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from study.bench.config import Cell
from study.bench.timing import Sample
from study.launch.server import THREAD_VARIABLES
from study.strict import to_tree

ROOT = Path(__file__).parents[2]
KILLED = -9  # how a process ends that the kernel found too large


class DoesNotFitError(Exception):
    """The cell does not fit: a result, not a failure."""


class RefusedError(ValueError):
    """The cell cannot be timed as asked; the message is one line."""


class CellProcess:
    """One fresh process of one cell. `root` is the source tree it runs, ours unless two trees are compared."""

    def __init__(self, cell: Cell, longest_warm_up: float = 3.0, root: Path = ROOT) -> None:
        self.cell, self.longest_warm_up = cell, longest_warm_up
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  # closed with the process
        threads = dict.fromkeys(THREAD_VARIABLES, str(cell.threads))
        path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "study.bench.cell"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **threads, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the parent, which ends it
        )
        self._tell(to_tree(cell))

    def open(self) -> dict[str, Any]:
        """Build and warm up; what that was like."""
        return self.ask("open", longest=self.longest_warm_up)

    def block(self, samples: int, seconds: float) -> list[Sample]:
        taken = self.ask("block", samples=samples, seconds=seconds)["samples"]
        return [Sample(tuple(numbers[:-2]), *numbers[-2:]) for numbers in taken]

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        self._tell({"do": do, **arguments})
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        if "out_of_memory" in answer:
            raise DoesNotFitError(answer["out_of_memory"])
        if "refused" in answer:
            raise RefusedError(answer["refused"])
        return answer

    def _tell(self, message: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def _ended(self) -> Exception:
        code = self._process.wait()
        if code == KILLED:
            return DoesNotFitError("its process was killed (signal 9), as the kernel does when memory is gone")
        self._errors.seek(0)
        last = self._errors.read().strip().splitlines()[-1:] or ["it said nothing"]
        return RefusedError(f"{self.cell.subject.name}: its process ended with status {code}: {last[0][:300]}")

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

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
