"""What `results/bench/` publishes of a machine: every family at tiny and S size, and layers against length."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from study.bench.config import Cell, Layer, Network, Protocol
from study.bench.rows import Measured, lines_of
from study.bench.scaling import lengths
from study.bench.schedule import Tell
from study.bench.store import save, table_line
from study.bench.suite import run_suite

TINY = (("dit-tiny", "diffussm-tiny", "patchssm-tiny", "dis-tiny", "unet-tiny"), 8)
SMALL = (("dit-s/2", "diffussm-s", "patchssm-s", "dis-s/2", "unet-small"), 32)
LENGTHS = (64, 256, 1024, 4096, 16384)
RATIOS = (  # textbook over fast, forward and backward: join, L, D, N, batch
    ("sum", 64, 384, 64, 64),
    ("sum", 256, 384, 64, 32),
    ("sum", 1024, 384, 64, 8),
    ("sum", 1024, 128, 16, 32),
    ("sum", 4096, 384, 64, 4),
    ("concat", 256, 384, 64, 32),
    ("concat", 1024, 384, 64, 8),
    ("concat", 1024, 128, 16, 32),
)
FEW = 6  # samples of a ratio that the textbook side takes seconds per call for; its interval tells


def record(plain: Cell, protocol: Protocol, folder: Path, tell: Tell) -> list[str]:
    """All of it, each group kept as it ends. Small networks and layers on one thread, S sizes on all that there are."""

    def run(cells: Sequence[Cell], memory: bool, how: Protocol) -> list[Measured]:
        found = run_suite(cells, how, memory, tell, lambda part: save(folder, part, how))
        save(folder, found, how)
        return found

    wide = replace(plain, threads=len(os.sched_getaffinity(0))) if plain.device == "cpu" else plain
    tiny = run(network_cells(plain, *TINY), True, protocol)
    small = run(network_cells(wide, *SMALL), True, protocol)
    told = lengths(("s4d", "s4d-textbook", "attention"), LENGTHS, (64, 16, "concat"), plain, protocol, folder, tell)
    few = replace(protocol, min_samples=FEW, min_seconds=0.0, blocks=2)
    ratios = run(ratio_cells(plain), False, few)
    return [summary_line(each, protocol) for each in tiny + small] + told + ratio_lines(ratios, few)


def network_cells(plain: Cell, names: Sequence[str], side: int) -> list[Cell]:
    """Latency and training step at batch 1, and for tiny networks an end-to-end sample."""
    modes = ("forward", "train", "sample") if side == TINY[1] else ("forward", "train")
    batches = (1, 16) if side == TINY[1] else (1,)
    return [
        replace(plain, subject=Network(name, (side, side)), mode=mode, batch=batch)
        for mode in modes
        for batch in (batches if mode != "sample" else (1,))
        for name in names
    ]


def ratio_cells(plain: Cell) -> list[Cell]:
    return [
        replace(plain, subject=Layer(form, L, D, N, join), mode="train", batch=batch)
        for join, L, D, N, batch in RATIOS
        for form in ("s4d", "s4d-textbook")
    ]


def summary_line(measured: Measured, protocol: Protocol) -> str:
    line = table_line(next(iter(lines_of(measured, protocol))))
    if line["ms"] is None:
        return f"{line['subject']} {line['shape']} batch {line['batch']} {line['what']}: {line['note']}"
    return f"{line['subject']} {line['shape']} batch {line['batch']} {line['what']}: {line['ms']:.4g} ms"


def ratio_lines(found: Sequence[Measured], protocol: Protocol) -> list[str]:
    """By the wall's clock and by CPU time, as the older script has it."""
    lines = []
    for each in found[1::2]:
        line = next(iter(lines_of(each, protocol)))
        where = f"{each.cell.subject.shape} batch {each.cell.batch}"
        lines.append(f"textbook / fast, {where}: {line.ratio or line.note}, CPU time {line.cpu_ratio or line.note}")
    return lines
