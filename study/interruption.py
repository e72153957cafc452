"""Stopping politely: a signal asks, the training loop answers at the end of its step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

POLITE = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2]  # Ctrl-C; schedulers and containers; SLURM's warning


class StoppedError(Exception):
    """A signal asked the run to stop, and everything up to here is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class StopRequest:
    """While active, the first polite signal is remembered; a second one acts at once, as it would have."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = {number: signal.signal(number, self._remember) for number in POLITE}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def check(self) -> None:
        """Raise if a signal has come."""
        if self.number is not None:
            raise StoppedError(self.number)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
