"""The papers' own costs, as printed, each with where it comes from and how it was obtained.

The numbers lie beside this module rather than with the papers' scores, because they are read wherever
a cost is printed, which may be an installed package without the repository around it.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

Obtained = str  # read | second hand | recalled | derived


@dataclass(frozen=True)
class Published:
    """A model's size, or a training run's total, in the units of the paper; None where it says nothing."""

    kind: str  # model | run
    method: str  # the paper's name for it
    resolution: int  # pixels
    backbone: str  # our name for it; empty when we have none
    params_m: float | None
    gmacs: float | None  # per image; the papers call it Gflops
    images_m: float | None
    total_gflops: float | None
    source: str
    obtained: Obtained
    note: str
    params_source: str = ""  # both empty: the parameters are from the same place, in the same way
    params_obtained: Obtained = ""

    @property
    def seen(self) -> str:
        """How its numbers were obtained, the parameters apart where they differ."""
        apart = self.params_obtained not in ("", self.obtained)
        return f"{self.obtained}; params {self.params_obtained}" if apart else self.obtained


@cache
def published() -> tuple[Published, ...]:
    text = (files("study.cost") / "published.csv").read_text(encoding="utf-8")
    return tuple(_row(row) for row in csv.DictReader(text.splitlines()))


def published_model(backbone: str, resolution: int) -> Published | None:
    """What a paper prints for this network at this resolution."""
    matches = (row for row in published() if row.kind == "model" and row.backbone == backbone)
    return next((row for row in matches if row.resolution == resolution), None)


def _row(row: dict[str, str]) -> Published:
    return Published(
        kind=row["kind"],
        method=row["method"],
        resolution=int(row["resolution"]),
        backbone=row["backbone"],
        params_m=_number(row["params_m"]),
        gmacs=_number(row["gmacs"]),
        images_m=_number(row["images_m"]),
        total_gflops=_number(row["total_gflops"]),
        source=row["source"],
        obtained=row["obtained"],
        note=row["note"],
        params_source=row["params_source"],
        params_obtained=row["params_obtained"],
    )


def _number(text: str) -> float | None:
    return float(text) if text else None
