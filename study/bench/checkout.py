"""Cells of two checkouts of this code, alive together and timed in turns: each from a server that runs its own code.

The servers speak the same way to either, so both checkouts must have the `study.bench.cell.serve` of this one.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from models.denoiser import require
from study.bench.config import Cell
from study.bench.process import Answering, RefusedError
from study.launch.server import THREAD_VARIABLES
from study.strict import to_tree

SERVER = """
import os, signal, sys
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
import study, torch._dynamo
from study.bench.cell import serve
control = Connection(int(sys.argv[1]))
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
control.send(os.path.dirname(os.path.dirname(os.path.abspath(study.__file__))))
while True:
    try:
        cell = control.recv()
        end = recv_handle(control)
    except EOFError:
        break
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        connection = Connection(end)
        try:
            serve(connection, cell)
        except OSError:  # nobody asks any more
            pass
        except Exception as error:
            connection.send({"refused": " ".join(str(error).split())})
        os._exit(0)
    os.close(end)
    control.send(child)
"""


class Checkout(AbstractContextManager["Checkout"]):
    """A folder with this project's code, and the server of its processes: it has imported, and computed nothing."""

    def __init__(self, folder: Path, threads: int) -> None:
        here = folder.absolute()
        require((here / "study/bench/cell.py").is_file(), "checkout", str(folder), "a folder with this project's code")
        threaded = dict.fromkeys(THREAD_VARIABLES, str(threads))
        paths = os.pathsep.join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.folder = folder
        self._end, theirs = multiprocessing.Pipe()
        command = [sys.executable, "-P", "-c", SERVER, str(theirs.fileno())]
        environment = {**os.environ, **threaded, "PYTHONPATH": paths}
        self._server = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], cwd=here)
        theirs.close()
        require(Path(self._receive()) == here.resolve(), "checkout", str(folder), "code that python imports from there")

    def start(self, cell: Cell) -> CheckoutProcess:
        """A fresh process of the cell, running this checkout's code."""
        mine, theirs = multiprocessing.Pipe()
        try:
            self._end.send(to_tree(cell))
            send_handle(self._end, theirs.fileno(), self._server.pid)
        except OSError:
            raise self._ended() from None
        theirs.close()
        return CheckoutProcess(cell, mine, int(self._receive()))

    def _receive(self) -> Any:
        try:
            return self._end.recv()
        except (EOFError, OSError):
            raise self._ended() from None

    def _ended(self) -> RefusedError:
        return RefusedError(f"checkout={str(self.folder)!r} is not valid: its code ended with {self._server.wait()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.close()
        self._server.terminate()
        self._server.wait()


class CheckoutProcess(Answering):
    """One process of a checkout; it ends when its connection is closed."""

    def __init__(self, cell: Cell, end: Connection, process: int) -> None:
        super().__init__(cell, end)
        self.process = process

    def ended(self) -> Exception:
        return RefusedError(f"{self.cell.subject.name}: its process ended by itself")
