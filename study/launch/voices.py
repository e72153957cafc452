"""What the fork server and its workers write to stderr: passed on to ours, and kept for when one of them dies."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

STDERR = 2


class Voices:
    """One open file, and so one place to write at, for all: unlike a pipe it never fills, and outlives who reads it."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._passed = 0
        self._lock = threading.Lock()

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Processes started meanwhile, and their children, write here."""
        ours = os.dup(STDERR)
        try:
            self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115  as long as this process
            os.dup2(self._file.fileno(), STDERR)
            yield
        finally:
            os.dup2(ours, STDERR)
            os.close(ours)

    def mark(self) -> int:
        """The present end, for `last_line`."""
        return os.fstat(self._file.fileno()).st_size if self._file else 0

    def last_line(self, mark: int) -> str:
        """Of what was said since, by whomever."""
        lines = [line for line in self._since(mark).decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""

    def pass_on(self) -> None:
        """To our own stderr, whatever is new."""
        with self._lock:
            new = self._since(self._passed)
            self._passed += len(new)
        if new:
            sys.stderr.write(new.decode(errors="replace"))
            sys.stderr.flush()

    def _since(self, mark: int) -> bytes:
        return os.pread(self._file.fileno(), self.mark() - mark, mark) if self._file else b""
