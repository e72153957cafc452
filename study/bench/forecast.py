"""How long measuring will take: by what the folder of this machine already knows, else by a guess."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from study.bench.config import Cell, Protocol
from study.bench.rows import MS, STEM
from study.bench.store import read_cell
from study.bench.timing import LEAST_SAMPLE, WINDOW
from study.estimate import GUESSED_GMACS_PER_SECOND
from study.results import Row, read_rows
from study.strict import ConfigError

START = 0.6  # seconds of a fresh process until its first call: fork, build, read
STANDING = 2 * WINDOW + 1  # calls of a warm-up that is soon stable


class Known:
    """Seconds per call, by cell, and the rate that the machine reached in all of them."""

    def __init__(self, folder: Path) -> None:
        self.rows = {file.parent.name: _rows(file) for file in sorted(folder.glob("runs/*/rows.jsonl"))}
        rates = [_rate(read_cell(folder, cell), rows) for cell, rows in self.rows.items()]
        self.rates = [rate for rate in rates if rate]

    @property
    def source(self) -> str:
        if not self.rates:
            return f"a guess of {GUESSED_GMACS_PER_SECOND:g} GMAC/s: nothing was measured on this machine yet"
        return f"{len(self.rates)} cells measured on this machine"

    def call(self, cell: Cell) -> float:
        """Seconds of one call: as it was measured, else by its MACs."""
        seconds = _seconds(self.rows.get(cell.id, []))
        rate = median(self.rates) if self.rates else GUESSED_GMACS_PER_SECOND
        return seconds or (cell.gmacs() or 0.0) / rate

    def seconds(self, cell: Cell, protocol: Protocol, memory: bool) -> float:
        """Of a whole cell: processes, warm-ups, samples and the pass for memory."""
        call = self.call(cell)
        least = LEAST_SAMPLE["cpu" if cell.device == "cpu" else "cuda"]
        warm = min(max(1.0, protocol.min_seconds), STANDING * max(call, least)) + call
        taken = max(protocol.min_seconds, max(protocol.min_samples, protocol.repeats * protocol.blocks) * call)
        return protocol.repeats * (START + warm) + taken + memory * (START + 3 * call)


def _rows(file: Path) -> list[Row]:
    try:
        return read_rows(file)
    except ValueError as error:
        raise ConfigError(f"{error} [damaged; remove {file.parent} to have the cell timed again]") from error


def _seconds(rows: Sequence[Row]) -> float | None:
    names = {f"{stem}_ms" for stem in STEM.values()}
    return next((row.value / MS for row in rows if row.metric in names), None)


def _rate(cell: Cell, rows: Sequence[Row]) -> float | None:
    seconds, gmacs = _seconds(rows), cell.gmacs()
    return gmacs / seconds if seconds and gmacs else None
