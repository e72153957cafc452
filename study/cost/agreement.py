"""Three independent counts of one network, and what to say when they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from models.denoiser import DenoiserConfig
from models.macs import Macs
from study.cost import fvcore_counter, tracer
from study.cost.fvcore_counter import Handle

COMPARED = ("matmul", "attention", "fft", "scan")
"""Parts that all three methods see. `kernel` follows a convention (5 MACs per mode and tap) that no executed form
need match, and `elementwise` is no cost in anybody's table."""


@dataclass(frozen=True)
class Agreement:
    """Forward MACs of one image by each method."""

    closed_form: Macs
    torch: Macs
    fvcore: Macs | None  # None: not asked, the network being too large to run

    def disagreements(self, tolerance: float = 1e-3) -> list[str]:
        """One line for every compared part in which a tracer is off the closed form by more than `tolerance`."""
        others = {"torch": self.torch} | ({"fvcore": self.fvcore} if self.fvcore is not None else {})
        return [
            f"{part}: closed form {expected:,}, {method} {seen:,} ({_relative(seen, expected)})"
            for method, macs in others.items()
            for part, expected, seen in _pairs(self.closed_form, macs)
            if abs(seen - expected) > tolerance * expected
        ]


def _pairs(closed: Macs, other: Macs) -> list[tuple[str, int, int]]:
    mine, theirs = closed.parts(), other.parts()
    return [(part, mine[part], theirs[part]) for part in COMPARED]


def _relative(seen: int, expected: int) -> str:
    return f"{seen / expected - 1:+.2%}" if expected else "the closed form has none"


def compare(config: DenoiserConfig, run: bool = True, handles: Mapping[str, Handle] | None = None) -> Agreement:
    """Count one config by all three methods; `run=False` leaves out fvcore, which needs real tensors."""
    ran = fvcore_counter.count(config, handles) if run else None
    return Agreement(config.macs(), tracer.trace(config).macs, ran)


def require_agreement(config: DenoiserConfig, tolerance: float = 1e-3, run: bool = True) -> Agreement:
    """Raise, naming the parts, unless all methods agree."""
    agreement = compare(config, run)
    if lines := agreement.disagreements(tolerance):
        raise ValueError(f"{type(config).__name__}: counts of MACs disagree; " + "; ".join(lines))
    return agreement
