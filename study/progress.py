"""What a person sees of a run, training and then sampling: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import resource
import sys
import time
from pathlib import Path
from types import TracebackType

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

QUIET = 10.0  # seconds between two lines about sampling, which has no interval of its own


class TrainingProgress:
    """Speed, loss, remaining time and memory, told every interval."""

    def __init__(self, total: int, done: int, batch: int, device: torch.device, show_bar: bool) -> None:
        self.total, self.batch, self.device = total, batch, device
        self._images, self._since = done, time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if show_bar:
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("images  {task.description}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("", total=total, completed=done)

    def __enter__(self) -> TrainingProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def tell(self, images: int, loss: float, speed: float, utilisation: float | None = None) -> None:
        """`speed` in images per second of training; `utilisation` of what the machine can do, where that is known."""
        remaining = (self.total - images) / speed if speed else 0.0
        step = -(-images // self.batch)
        steps = -(-self.total // self.batch)
        memory = peak_memory_mib(self.device)
        pace = f"{speed:.0f} images/s" + ("" if utilisation is None else f"  MFU {utilisation:.1%}")
        log.info(
            "step %d/%d  images %d/%d  loss %.4f  %s  %s left  %.0f MiB",
            *(step, steps, images, self.total, loss, pace, duration(remaining), memory),
        )
        if self._bar and self._task is not None:
            description = f"loss {loss:.4f}  {pace}  {memory:.0f} MiB"
            self._bar.update(self._task, completed=images, description=description)

    def sampling(self, count: int) -> SamplingProgress:
        """The same for `count` samples, under the bar of training if there is one."""
        return SamplingProgress(count, self._bar)


class SamplingProgress:
    """Told how many samples are made, those under way in part: first at the start, then as they grow."""

    def __init__(self, count: int, bar: Progress | None = None) -> None:
        self.count, self._bar = count, bar
        self._task = bar.add_task("sampling", total=count) if bar else None
        self._start: tuple[float, float] | None = None  # time, and samples there already
        self._said = time.monotonic()

    def __call__(self, done: float) -> None:
        now = time.monotonic()
        began, found = self._start = self._start or (now, done)
        speed = (done - found) / max(now - began, 1e-9)
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=int(done), description=f"sampling  {speed:.3g} images/s")
        if speed and (done >= self.count or now - self._said >= QUIET):
            left = duration((self.count - done) / speed)
            log.info("sampled %d/%d  %.3g images/s  %s left", done, self.count, speed, left)
            self._said = now


def peak_memory_mib(device: torch.device) -> float:
    """Most memory held so far: on the accelerator if there is one, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        # Not getrusage: on Linux its peak survives exec, so a process started by a large one begins with that.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    except (OSError, IndexError):
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used / 2**20 if sys.platform == "darwin" else used / 2**10


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
