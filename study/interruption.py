"""Stopping politely: a signal asks, the training loop answers at the end of its step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

POLITE = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2]  # Ctrl-C; schedulers and containers; SLURM's warning


class StoppedError(Exception):
    """A signal asked the run to stop, and everything up to here is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


class PrunedError(Exception):
    """Whoever listens to the run's validations has seen enough, and everything up to here is saved."""

    def __init__(self, images: int, loss: float) -> None:
        super().__init__(images, loss)
        self.images, self.loss = images, loss

    def __str__(self) -> str:
        return f"stopped at {self.images} images, validation loss {self.loss:.4g}: others did better"


class StopRequest:
    """While active, the first polite signal is remembered; a second one acts at once, as it would have.

    `agree` makes one number of those that several processes of a run have (0: no signal), the same for all.
    """

    def __init__(self, agree: Callable[[int], int] = lambda number: number) -> None:
        self.number: int | None = None
        self._agree = agree
        self._at_once = False
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = {number: signal.signal(number, self._remember) for number in POLITE}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def agreed(self) -> bool:
        """Whether a signal has come to any process of the run. All ask at the same point of their work."""
        self.number = self._agree(self.number or 0) or None
        return self.number is not None

    def check(self) -> None:
        """Raise if a signal has come to any process of the run."""
        if self.agreed():
            self.check_here()

    def check_here(self) -> None:
        """Raise if a signal has come to this process."""
        if self.number is not None:
            raise StoppedError(self.number)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Around work that asks nobody and leaves nothing half-done: a signal raises wherever it is."""
        self.check_here()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()
        if self._at_once:
            raise StoppedError(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
