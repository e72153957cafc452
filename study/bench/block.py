"""What to time of networks, and how: the `bench:` block of a sweep file, and the command line's options."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch

from models.denoiser import require
from study.bench.config import Cell, Protocol, Spin, Subject
from study.bench.peers import check_peer
from study.optimizer import check_precision
from study.strict import ConfigError, from_tree, to_tree

LISTS = ("size", "batch", "mode", "dtype", "peer")  # one entry may be written without brackets


@dataclass(frozen=True, kw_only=True)
class BenchConfig(Protocol):
    """All combinations of its lists, for every network; and the protocol by which each is timed."""

    size: tuple[int, ...] = ()  # image sides in pixels; (): as the data, or the backbone, has it
    batch: tuple[int, ...] = (1,)
    mode: tuple[Literal["forward", "train", "sample"], ...] = ("forward",)
    dtype: tuple[Literal["fp32", "bf16", "fp16"], ...] = ("fp32",)
    peer: tuple[str, ...] = ()  # name=path:callable, beside the baseline
    compile: bool = False
    device: str = "auto"
    threads: int = 1  # of a CPU, pinned
    steps: int = 20  # of an end-to-end sample, ddim
    guidance: float = 1.0  # of a sample; other than 1 doubles its calls
    memory: bool = True  # also the passes for memory and energy

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in LISTS:
            given = getattr(self, name)
            distinct = len(set(given)) == len(given) and (bool(given) or name in ("size", "peer"))
            require(distinct, name, list(given), "one or more distinct values")
        for name in ("size", "batch"):
            for value in getattr(self, name):
                require(value > 0, name, value, "a positive integer")
        for name in ("threads", "steps"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive integer")

    @property
    def protocol(self) -> Protocol:
        return Protocol(**{each.name: getattr(self, each.name) for each in fields(Protocol)})

    @property
    def place(self) -> str:
        """The device, once `auto` is resolved."""
        return ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device

    def plain(self) -> Cell:
        """A cell with everything but its subject and its place in the table; refused where this machine cannot."""
        try:
            device = torch.device(self.place)
        except RuntimeError:
            device = torch.device("meta")
        at_hand = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_available())
        require(at_hand, "device", self.device, "auto, cpu" + ", or cuda" * torch.cuda.is_available())
        require(self.threads <= (os.cpu_count() or 1), "threads", self.threads, f"at most {os.cpu_count()} here")
        return Cell(Spin(1), compile=self.compile, device=self.place, threads=self.threads)

    def cells(self, subjects: Callable[[int | None], Sequence[Subject]]) -> list[Cell]:
        """Every cell, those that are compared side by side; `subjects` are those of a size, the baseline first."""
        plain = self.plain()
        for text in self.peer:
            check_peer(text)
        for dtype in self.dtype:
            check_precision(dtype, torch.device(self.place))
        sizes: list[int | None] = list(self.size) or [None]
        return [
            replace(plain, subject=subject, mode=mode, batch=batch, dtype=dtype, steps=self.steps, guidance=guidance)
            for dtype in self.dtype
            for mode in self.mode
            for guidance in [self.guidance if mode == "sample" else 1.0]
            for batch in self.batch
            for size in sizes
            for subject in subjects(size)
        ]


def bench_from(given: Any) -> BenchConfig:
    if not isinstance(given, Mapping | None):
        raise ConfigError(f"bench={given!r} is not valid: must be a mapping, such as bench: {{batch: [1, 16]}}")
    listed = {
        key: [value] if key in LISTS and not isinstance(value, list) else value for key, value in (given or {}).items()
    }
    return from_tree(BenchConfig, {**to_tree(BenchConfig()), **listed}, "bench")


def bench_tree(config: BenchConfig) -> dict[str, Any]:
    """The tree `bench_from` reads back to an equal config."""
    return dict(to_tree(config))
