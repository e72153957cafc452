"""Speed as a sweep file states it, for plans of machines that this one is not: `throughput:`.

    throughput: {gpu: A100 80GB, gpus: 8, peak_tflops: 312, mfu: 0.35, source: an assumption}

`mfu` is the share of the peak that training reaches, of all backbones or of each: {dit: 0.4, diffussm: 0.2}.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from study.strict import ConfigError, from_tree, nearest, to_tree

FLOPS_PER_MAC = 2
REST = "rest"


@dataclass(frozen=True, kw_only=True)
class StatedSpeed:
    """What the GPUs of one run do together, and who says so."""

    gpu: str
    gpus: int  # that do one run
    peak_tflops: float  # of one, dense, in the runs' precision
    mfu: Any  # a number, or one by backbone, `rest` for those not named
    source: str  # measured where, or assumed why

    def __post_init__(self) -> None:
        for name, least in (("gpus", 1), ("peak_tflops", 0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least and value > 0):
                raise ConfigError(f"throughput.{name}={value!r} is not valid: must be above 0")
        for name, value in self.shares.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and 0 < value <= 1):
                raise ConfigError(f"throughput.mfu={value!r} is not valid for {name}: must be in (0, 1]")
        if not self.source:
            raise ConfigError("throughput.source='' is not valid: must say where the numbers come from")

    @property
    def shares(self) -> dict[str, float]:
        return dict(self.mfu) if isinstance(self.mfu, Mapping) else {REST: self.mfu}

    def of(self, backbone: str) -> float:
        """GMACs per second."""
        share = self.shares.get(backbone, self.shares.get(REST))
        if share is None:
            raise ConfigError(f"throughput.mfu has no share for {backbone}{nearest(backbone, [*self.shares])}")
        return self.gpus * self.peak_tflops * 1e3 * share / FLOPS_PER_MAC

    def told(self, backbones: Sequence[str]) -> str:
        shares = {name: self.of(name) * FLOPS_PER_MAC / (self.gpus * self.peak_tflops * 1e3) for name in backbones}
        each = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        return f"{self.gpus} x {self.gpu} of {self.peak_tflops:g} TFLOP/s, of which {each} is reached: {self.source}"


def stated_speed_from(given: Any) -> StatedSpeed:
    if not isinstance(given, Mapping):
        raise ConfigError(f"throughput={given!r} is not valid: must be a mapping")
    return from_tree(StatedSpeed, dict(given), "throughput")


def stated_speed_tree(speed: StatedSpeed) -> dict[str, Any]:
    tree: dict[str, Any] = to_tree(speed)
    return tree
