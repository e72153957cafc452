"""`python -m study.sweep` on a sweep file with a `bench:` block: its networks are timed, not trained."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from study.atomic import canonical_json
from study.bench.block import BenchConfig
from study.bench.config import Cell, Network, Protocol, Subject, spelling_of
from study.bench.forecast import Known
from study.bench.process import RefusedError
from study.bench.rows import OUT_OF_MEMORY, THROUGHPUT, Measured
from study.bench.store import TABLE, machine_folder, save
from study.bench.suite import common_batch, run_suite, table_of
from study.bench.table import print_lines
from study.compose import DEFAULTS
from study.cost.summary import at_pixels
from study.cost.table import print_table
from study.equal_compute import partner_values
from study.launch.config import SlurmConfig
from study.plan import Plan, Point, is_baseline, make_plan
from study.progress import duration
from study.results import Row
from study.strict import ConfigError
from study.sweep_file import REPLICATES, Sweep


@dataclass(frozen=True)
class Part:
    """Cells of one table, all batches of it: measured together or not at all."""

    cells: tuple[Cell, ...]  # the first is the baseline

    def done(self, known: Known, protocol: Protocol) -> bool:
        """Whether every cell was timed by this protocol, against this baseline, none was rejected, and throughput
        was told at the largest batch that all of them fit."""
        first = self.cells[0].subject.name
        rows = {cell.id: known.rows.get(cell.id, []) for cell in self.cells}
        if not all(_stands(rows[cell.id], cell, first, protocol) for cell in self.cells):
            return False
        fits = {identity: all(row.metric != OUT_OF_MEMORY for row in told) for identity, told in rows.items()}
        batch = common_batch(self.cells, fits)
        common = [cell for cell in self.cells if cell.batch == batch and cell.mode in THROUGHPUT]
        return all(any(row.metric == THROUGHPUT[cell.mode] for row in rows[cell.id]) for cell in common)


def bench_sweep(sweep: Sweep, force: bool, plan_only: bool) -> int:
    """The exit code: 0 all cells are timed, 1 some were too noisy to be believed."""
    if isinstance(sweep.launcher, SlurmConfig):
        raise sweep.source.error(("launcher",), "launcher=slurm does not go with bench: run the command inside a job")
    block, plan = _block(sweep), make_plan(sweep)
    tables = [parts(_cells(sweep, block, family)) for family in families(plan)]
    folder = machine_folder(block.place, plan.results / "bench")
    known = Known(folder)
    left = [[part for part in table if force or not part.done(known, block.protocol)] for table in tables]
    console = Console(highlight=False)
    print_cells(sweep, folder, tables, left, known, console)
    if plan_only:
        return 0
    for table in left:
        _measure([cell for part in table for cell in part.cells], block, folder)
    return _conclude(folder, [cell.id for table in tables for part in table for cell in part.cells], console)


def _block(sweep: Sweep) -> BenchConfig:
    assert sweep.bench is not None
    return sweep.bench


def families(plan: Plan) -> list[list[Point]]:
    """Points that share a baseline, which comes first; of points that are one network, such as repetitions or those
    of an axis that only training knows, the first."""
    found: dict[str, dict[tuple[str, tuple[int, int]], Point]] = {}
    for point in sorted(plan.points, key=lambda point: not is_baseline(plan.sweep, point.values)):
        partner = partner_values(plan.sweep, point.values) if plan.sweep.baseline else {}
        key = canonical_json({name: value for name, value in partner.items() if name not in REPLICATES})
        network = (spelled_point(plan.sweep, point), point.config.backbone.size)
        found.setdefault(key, {}).setdefault(network, point)
    merged: dict[tuple[str, tuple[int, int]], dict[tuple[str, tuple[int, int]], Point]] = {}
    for points in found.values():
        baseline = merged.setdefault(next(iter(points)), {})
        baseline.update({network: point for network, point in points.items() if network not in baseline})
    return [list(points.values()) for points in merged.values()]


def spelled_point(sweep: Sweep, point: Point) -> str:
    preset = {**DEFAULTS, **sweep.defaults, **point.values}["backbone"]
    return spelling_of(str(preset), point.config.backbone)


def _cells(sweep: Sweep, block: BenchConfig, family: Sequence[Point]) -> list[Cell]:
    def subjects(pixels: int | None) -> list[Subject]:
        configs = [point.config.backbone for point in family]
        sizes = [(config if pixels is None else at_pixels(config, pixels)).size for config in configs]
        plain = [Network(spelled_point(sweep, point), size) for point, size in zip(family, sizes, strict=True)]
        for each in plain:
            each.config.macs()  # refuses a size that this network cannot have
        return [plain[0], *(replace(plain[0], peer=text) for text in block.peer), *plain[1:]]

    try:
        return block.cells(subjects)
    except ConfigError:
        raise
    except ValueError as error:
        raise sweep.source.error(("bench",), f"bench: {error}") from error


def parts(cells: Sequence[Cell]) -> list[Part]:
    found: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        found.setdefault(table_of(cell), []).append(cell)
    return [Part(tuple(members)) for members in found.values()]


def _stands(rows: Sequence[Row], cell: Cell, baseline: str, protocol: Protocol) -> bool:
    """Out of memory is a result; a cell too noisy to be reported is none."""
    rejected = any(row.metric.endswith("_rejected_spread") for row in rows)
    against = "" if cell.subject.name == baseline else baseline
    same = [row.protocol == protocol.name and row.provenance.get("baseline", "") == against for row in rows]
    return bool(rows) and all(same) and not rejected


Tables = Sequence[Sequence[Part]]


def print_cells(sweep: Sweep, folder: Path, tables: Tables, left: Tables, known: Known, console: Console) -> None:
    """Every cell with its state and expected time, and what the rest will take."""
    block, total = _block(sweep), 0.0
    missing = {cell.id for table in left for part in table for cell in part.cells}
    cells = [cell for table in tables for part in table for cell in part.cells]
    lines = []
    for cell in cells:
        seconds = known.seconds(cell, block.protocol, block.memory) if cell.id in missing else 0.0
        total += seconds
        macs, subject = cell.subject.macs(), cell.subject
        state, gmacs = "to do" if cell.id in missing else "done", f"{macs.total / 1e9:.4g}" if macs else ""
        lines.append(
            (subject.name, subject.shape, cell.mode, str(cell.batch), cell.dtype, gmacs, state, duration(seconds))
        )
    if sweep.question:
        console.print(sweep.question, markup=False, soft_wrap=True)
    print_table(None, ("subject", "shape", "mode", "batch", "dtype", "gmacs", "state", "time"), lines, console)
    words = f"{len(cells)} cells, {len(cells) - len(missing)} of them done; rows go to {folder}"
    console.print(words, f"to do: about {duration(total)}, by {known.source}; {block.protocol.name}", sep="\n",
                  soft_wrap=True, markup=False)  # fmt: skip


def _measure(cells: Sequence[Cell], block: BenchConfig, folder: Path) -> None:
    if not cells:
        return

    def keep(found: list[Measured]) -> None:
        save(folder, found, block.protocol)

    try:
        run_suite(cells, block.protocol, block.memory, _tell, keep)
    except RefusedError as error:
        raise ConfigError(" ".join(str(error).split())) from error


def _tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _conclude(folder: Path, cells: Sequence[str], console: Console) -> int:
    table = pd.read_csv(folder / TABLE).set_index("cell", drop=False)
    own = table.loc[[cell for cell in cells if cell in table.index]]
    print_lines(own.to_dict("records"), console)
    rejected = sorted(set(own[own["note"].astype(str).str.contains("rejected")]["cell"]))
    if rejected:
        print(f"{len(rejected)} cells were too noisy to be believed; the same command tries again", file=sys.stderr)
    return 1 if rejected else 0
