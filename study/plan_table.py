"""A plan as a person reads it: every run with its state and cost, and the sums, total and per axis."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from study.config import backbone_name
from study.estimate import Cost, Speed, estimate, largest_memory, latent_bytes, memory_of, needs_of
from study.launch.config import LauncherConfig, LocalConfig
from study.launch.local import usable_cpus, visible_gpus
from study.plan import Plan, Standing, standing
from study.progress import duration
from study.quality import empty_columns
from study.stated_speed import StatedSpeed
from study.sweep_file import REPLICATES, distinct, same_value, shown
from study.throughput import recorded_speed

SHOWN = 40  # runs listed one by one
SIZES = 12  # of networks whose memory is worked out one by one
UNWRAPPED = 180  # columns of a table that goes to a file


def print_plan(plan: Plan, memory: bool = False) -> None:
    """`memory`: of every run, which takes a second for each size of network; of the largest it is always told."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else UNWRAPPED)
    speed = plan.sweep.throughput or recorded_speed(plan.results)
    costs = {point.run: estimate(point.config, speed) for point in plan.points}
    stands = {point.run: standing(point)[0] for point in plan.points}
    if plan.sweep.question:
        console.print(plan.sweep.question, markup=False)
    sizes = {needs_of(point.config) for point in plan.points}
    memory = (
        memory and len(sizes) <= SIZES and not plan.sweep.throughput
    )  # of a network made for GPUs it takes a minute
    console.print(_runs(plan, costs, stands, memory))
    if len(plan.points) > SHOWN:
        console.print(f"and {len(plan.points) - SHOWN} more runs")
    for table in _per_axis(plan, costs, stands):
        console.print(table)
    for line in [*totals(plan, costs, stands, speed), *empty_columns(point.config for point in plan.points)]:
        console.print(line, markup=False)


def plan_tree(plan: Plan) -> dict[str, Any]:
    """The plan for machines: what `plan.json` will hold, and of every point how it stands and what it costs."""
    speed = plan.sweep.throughput or recorded_speed(plan.results)
    tree = plan.as_tree()
    for told, point in zip(tree["points"], plan.points, strict=True):
        told |= {"state": str(standing(point)[0]), "cost": asdict(estimate(point.config, speed))}
    return {"results": str(plan.results), **tree}


def totals(plan: Plan, costs: dict[str, Cost], stands: dict[str, Standing], speed: Speed | StatedSpeed) -> list[str]:
    """What there is, what is left, and what the estimate rests on."""
    counts = Counter(stands.values())
    told = ", ".join(f"{counts[stand]} {stand}" for stand in Standing if counts[stand])
    left = [costs[point.run] for point in plan.points if stands[point.run] in (Standing.NEW, Standing.UNFINISHED)]
    work = _on_gpus(plan, left, speed) if isinstance(speed, StatedSpeed) else _on_workers(plan, left, speed)
    return [f"{len(plan.points)} runs: {told}; results in {plan.folder}", *work]


def _on_workers(plan: Plan, left: Sequence[Cost], speed: Speed) -> list[str]:
    workers = worker_count(plan.sweep.launcher)
    longest = max((cost.seconds for cost in left), default=0.0)
    wall = max(sum(cost.seconds for cost in left) / workers, longest)
    memory, _ = largest_memory([point.config for point in plan.points])
    return [
        f"to do: {sum(cost.train_pflops for cost in left):.4g} training PFLOPs, about {duration(wall)} with "
        f"{workers} worker{'s' * (workers > 1)}, {sum(cost.disk for cost in left) / 1e6:.0f} MB of disk; "
        f"the largest run needs {memory / 2**20:.0f} MiB for tensors",
        f"time rests on {speed.source(_backbones(plan))}",
    ]


def _on_gpus(plan: Plan, left: Sequence[Cost], speed: StatedSpeed) -> list[str]:
    """For machines that are not here; what a step needs of their memory, `python -m study.cost` works out."""
    seconds = sum(cost.seconds for cost in left)
    latents = latent_bytes(point.config for point in plan.points)
    configs = [point.config for point in plan.points]
    batch = max(config.machine.micro_batch or config.train.batch for config in configs)
    return [
        f"to do: {sum(cost.train_pflops for cost in left):.4g} training PFLOPs, {speed.gpus * seconds / 3600:,.0f} "
        f"GPU-hours, {seconds / 86400:.1f} days one run after another",
        f"disk: {latents / 1e9:.1f} GB of latents, {sum(cost.disk for cost in left) / 1e9:.1f} GB of checkpoints and "
        "samples",
        f"memory of a step: python -m study.cost {plan.sweep.source.file} --batch {batch} "
        f"--precision {configs[0].train.precision}",
        f"hours rest on {speed.told(_backbones(plan))}",
    ]


def _backbones(plan: Plan) -> list[str]:
    return sorted({backbone_name(point.config.backbone) for point in plan.points})


def worker_count(launcher: LauncherConfig) -> int:
    if not isinstance(launcher, LocalConfig):
        return 1
    return launcher.workers or len(visible_gpus()) or max(1, usable_cpus() // launcher.threads)


def _runs(plan: Plan, costs: dict[str, Cost], stands: dict[str, Standing], memory: bool) -> Table:
    table = _table(
        ["run", *plan.labels.values(), *(["sizes"] if plan.sweep.match else []), "state"],
        ["params", "gmacs", "train PFLOPs", *_time_columns(plan), *(["MiB"] if memory else [])],
    )
    for point in plan.points[:SHOWN]:
        values = [shown(point.values[key]) for key in plan.labels]
        values += [plan.sizes(point)] if plan.sweep.match else []
        cells = _cells(plan, [costs[point.run]])
        cells += [f"{memory_of(point.config) / 2**20:.0f}"] if memory else []
        table.add_row(point.run, *values, stands[point.run], *cells)
    return table


def _per_axis(plan: Plan, costs: dict[str, Cost], stands: dict[str, Standing]) -> list[Table]:
    tables = []
    for key, label in plan.labels.items():
        values = distinct(plan.sweep.values_of(key))
        if key in REPLICATES or len(values) < 2:
            continue
        table = _table([label, "runs", "done"], ["params", "gmacs", "train PFLOPs", *_time_columns(plan)])
        for value in values:
            points = [point for point in plan.points if same_value(point.values[key], value)]
            group = [costs[point.run] for point in points]
            done = sum(stands[point.run] is Standing.DONE for point in points)
            table.add_row(shown(value), str(len(points)), str(done), *_cells(plan, group))
        tables.append(table)
    return tables


def _time_columns(plan: Plan) -> list[str]:
    return ["time", "GPU-hours"] if plan.sweep.throughput else ["time"]


def _cells(plan: Plan, costs: Sequence[Cost]) -> list[str]:
    """Sums, but of sizes the range."""
    pflops, seconds = sum(cost.train_pflops for cost in costs), sum(cost.seconds for cost in costs)
    stated = plan.sweep.throughput
    return [
        _range([cost.params / 1e6 for cost in costs], "{:.3g}M"),
        _range([cost.gmacs for cost in costs], "{:.4g}"),
        f"{pflops:.4g}",
        duration(seconds),
        *([f"{stated.gpus * seconds / 3600:,.0f}"] if stated else []),
    ]


def _range(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low}..{high}"


def _table(names: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table
