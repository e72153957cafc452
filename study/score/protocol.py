"""What makes two scores comparable, and its id. Rows of different protocols are never averaged or ranked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from models.denoiser import require
from study.atomic import canonical_json
from study.results import Row

VERSION = 2  # raise when the same images get other scores


@dataclass(frozen=True)
class Protocol:
    metric: str
    n: int  # samples
    reference: str  # its name, for people
    reference_sha256: str
    n_reference: int  # 0: published statistics
    space: str = ""  # "": pixels
    space_sha256: str = ""
    layer: str = ""
    settings: Mapping[str, float | int | str] = field(default_factory=dict)  # of the estimator: k, pairs, seed
    sampling: Mapping[str, object] = field(default_factory=dict)  # how the samples were drawn, but for their seed

    @property
    def id(self) -> str:
        meaning = {key: value for key, value in asdict(self).items() if key != "reference"}
        digest = hashlib.sha256(canonical_json({**meaning, "version": VERSION}).encode()).hexdigest()[:12]
        return f"{self.metric}-{digest}"


def size_label(n: int) -> str:
    """5000 -> 5k, 297 -> 297."""
    return f"{n // 1000}k" if n % 1000 == 0 and n > 0 else str(n)


def require_comparable(rows: Iterable[Row]) -> None:
    """Refuse rows that were not made the same way: other N, reference, features or sampling."""
    found = sorted({(row.metric, row.protocol) for row in rows})
    listed = ", ".join(f"{metric} ({protocol})" for metric, protocol in found)
    require(len(found) <= 1, "rows", listed, "of one metric, N and protocol to be compared")
