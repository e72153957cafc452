"""Packing: how many runs one job does one after another. Starting Python and PyTorch takes some ten seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from study.launch.config import SlurmConfig

T = TypeVar("T")

PACK_SECONDS = 600.0  # of work in one job
SPREAD = 8  # jobs that short runs are spread over before they are packed


def packs(config: SlurmConfig, work: Sequence[T], seconds: Sequence[float]) -> list[Sequence[T]]:
    """One entry per job; `seconds` is what each piece of work is expected to take."""
    if config.processes > 1:
        return [[each] for each in work]
    if config.pack:
        return [work[start : start + config.pack] for start in range(0, len(work), config.pack)]
    most = min(PACK_SECONDS, config.time * 60 / 2)
    return packed(work, seconds, most, max(1, len(work) // (config.parallel or SPREAD)))


def packed(work: Sequence[T], seconds: Sequence[float], most: float, longest: int) -> list[Sequence[T]]:
    """Neighbours together, up to so many seconds and so many of them; in order, none left out."""
    found: list[list[T]] = []
    filled = 0.0
    for each, cost in zip(work, seconds, strict=True):
        if not found or filled + cost > most or len(found[-1]) >= longest:
            found.append([])
            filled = 0.0
        found[-1].append(each)
        filled += cost
    return list(found)
