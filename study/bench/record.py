"""What `results/bench/` publishes of a machine: every family at tiny and S size, and layers against length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from study.bench.config import Cell, Layer, Network, Protocol
from study.bench.rows import Measured, lines_of
from study.bench.scaling import lengths
from study.bench.schedule import Tell
from study.bench.store import save
from study.bench.suite import run_suite
from study.bench.table import span, table_line

TINY = (("dit-tiny", "diffussm-tiny", "patchssm-tiny", "dis-tiny", "unet-tiny"), 8)
SMALL = (("dit-s/2", "diffussm-s", "patchssm-s", "dis-s/2", "unet-small"), 32)
GPU = (
    ("dit-s/2", "diffussm-s", "patchssm-s", "dis-s/2"),
    ("dit-b/2", "dis-b/2"),
    ("dit-xl/2", "diffussm-xl", "patchssm-xl", "dis-h/2", "unet-ldm-8"),
)
LENGTHS = (64, 256, 1024, 4096, 16384)
RATIOS = (  # textbook over fast, forward and backward: join, L, D, N, batch, and the ratio aimed at
    ("sum", 64, 384, 64, 64, 6.9),
    ("sum", 256, 384, 64, 32, 6.1),
    ("sum", 1024, 384, 64, 8, 13.0),
    ("sum", 1024, 128, 16, 32, 3.9),
    ("sum", 4096, 384, 64, 4, 22.0),
    ("concat", 256, 384, 64, 32, 4.4),
    ("concat", 1024, 384, 64, 8, 9.6),
    ("concat", 1024, 128, 16, 32, 2.4),
)
FEW = 6  # samples of a ratio that the textbook side takes seconds per call for; its interval tells


PARTS = ("networks", "layers", "ratios")


def record(plain: Cell, protocol: Protocol, folder: Path, tell: Tell, parts: Sequence[str] = PARTS) -> Iterator[str]:
    """Everything, or some parts of it; each group is kept, and its sentences told, as it ends."""

    def run(cells: Sequence[Cell], memory: bool = True, how: Protocol = protocol) -> list[Measured]:
        found = run_suite(cells, how, memory, tell, lambda part: save(folder, part, how))
        save(folder, found, how)
        return found

    if "networks" in parts:
        for cells in network_suites(plain):
            yield from (summary_line(each, protocol) for each in run(cells))
    if "layers" in parts:
        layer = (64, 16, "concat")
        yield from lengths(("s4d", "s4d-textbook", "attention"), LENGTHS, layer, plain, protocol, folder, tell)
    if "ratios" in parts:
        few = replace(protocol, min_samples=FEW, min_seconds=0.0, blocks=2)
        yield from ratio_lines(run(ratio_cells(plain), False, few), few)


def network_suites(plain: Cell) -> list[list[Cell]]:
    """On a CPU with the threads asked for, one as a rule: with all cores nothing else may run, and something does."""
    if plain.device != "cpu":
        return [gpu_cells(plain, names) for names in GPU]
    return [network_cells(plain, *TINY), network_cells(plain, *SMALL)]


def gpu_cells(plain: Cell, names: Sequence[str]) -> list[Cell]:
    """Networks of one size at 256- and 512-pixel latents in bf16, compiled and not: latency, throughput, training."""
    return [
        replace(plain, subject=Network(name, (side, side)), mode=mode, batch=batch, dtype="bf16", compile=compiled)
        for compiled in (False, True)
        for side, largest in ((32, 32), (64, 8))
        for mode, batch in (("forward", 1), ("forward", largest), ("train", largest))
        for name in names
    ]


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
        for join, L, D, N, batch, _ in RATIOS
        for form in ("s4d", "s4d-textbook")
    ]


def summary_line(measured: Measured, protocol: Protocol) -> str:
    line = table_line(next(iter(lines_of(measured, protocol))))
    name = f"{line['subject']} {line['shape']} batch {line['batch']} {line['dtype']} {line['what']}"
    if line["ms"] is None:
        return f"{name}: {line['note']}"
    noted = f"; {line['note']}" if line["note"] else ""
    return f"{name}: {span(line['ms'], line['low'], line['high'])} ms, n={line['n']}{noted}"


def ratio_lines(found: Sequence[Measured], protocol: Protocol) -> list[str]:
    """By the wall's clock and by CPU time, as the older script has it."""
    lines = []
    for each, (*_, aim) in zip(found[1::2], RATIOS, strict=True):
        line = next(iter(lines_of(each, protocol)))
        where = f"{each.cell.subject.shape} batch {each.cell.batch}"
        n = f"n={line.summary.n if line.summary else 0} in {protocol.repeats} processes"
        told = line.ratio or line.note or "its baseline was rejected"
        lines.append(f"textbook / fast, {where}: {told}, CPU time {line.cpu_ratio or 'not compared'}, {n}; aim {aim:g}")
    return lines
