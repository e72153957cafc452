"""What a sweep found: its table, what is noise and what is not, and its plots.

python -m study.answer ablate_M
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from study import caveats
from study.answer_plots import draw
from study.atomic import write_file, write_text
from study.command_line import finish
from study.comparison import Cell, Estimate, Metric, Study, differences, mean_of, study_of
from study.options import answer_parser
from study.plan_file import read_plan
from study.run_directory import RunDirectory
from study.status import find_sweep
from study.store import load, runs
from study.unscored import lines_of_many, read_unscored

UNWRAPPED = 180  # columns
SHOWN = 5  # metrics in the printed table; the CSV has all
COSTS = ("params", "gmacs", "train_pflops", "images_per_second", "train_seconds")
TIMED = ("images_per_second", "train_seconds")  # of which no two seeds have the same: the machine has other work


def answer(folder: Path, plan: Mapping[str, Any] | None = None) -> str:
    """The text a sweep ends with; the plots and the full table are written beside its plan, if they can be."""
    plan = read_plan(folder) if plan is None else plan
    study, identities = _studied(folder, plan)
    chosen = shown_metrics(study)
    tables = [_render(quality_table(study, chosen)), "", _render(cost_table(study)), ""]
    parts = [study.question, "", *tables, *remarks(study, chosen), *missing(folder, study, identities)]
    try:
        write_file(folder / "answer.csv", lambda path: frame(study).to_csv(path, index=False))
        write_text(folder / "answer.txt", "\n".join(parts) + "\n")
        files = list(map(str, [folder / "answer.csv", *draw(study, chosen, folder)]))
    except OSError as error:
        files = [f"{folder}: the table and the plots could not be written: {error.strerror or error}"]
    return "\n".join([*parts, *files])


def shown_metrics(study: Study) -> list[Metric]:
    """Quality metrics without the details; of each name the first protocol, and those of runs that lack that one."""
    chosen: dict[str, list[Metric]] = {}
    for metric in study.metrics:
        if metric.is_cost or metric.is_floor or metric.is_detail:
            continue
        seen = {run for other in chosen.setdefault(metric.name, []) for run in other.values}
        if not seen & metric.values.keys():
            chosen[metric.name].append(metric)
    return [metric for name in list(chosen)[:SHOWN] for metric in chosen[name]]


def quality_table(study: Study, metrics: Sequence[Metric]) -> Table:
    """Per metric and cell: the mean over seeds, and its difference to the baseline; the floor of real images first."""
    result = _table(["metric", "point"], ["runs", "mean"], ["difference to baseline"] if study.partner else [])
    names = [metric.name for metric in metrics]
    for metric in metrics:
        title = metric.name if names.count(metric.name) == 1 else f"{metric.name} ({metric.protocol})"
        floor = study.floor(metric)
        if floor is not None:
            result.add_row(title, floor.label, "", f"{floor.value:.4g}", *([""] if study.partner else []))
        found = differences(study, metric)
        for index, cell in enumerate(study.cells):
            done = sum(run in metric.values for run in cell.runs.values())
            row = [
                title if not index and floor is None else "",
                cell.label,
                f"{done}/{len(cell.runs)}",
                _mean(mean_of(cell, metric)),
            ]
            row += [_compared(study, cell, metric, found[cell.label])] if study.partner else []
            result.add_row(*row, end_section=cell is study.cells[-1])
    return result


def cost_table(study: Study) -> Table:
    """Per cell what it is and what it took, in means over its runs."""
    costs = [metric for name in COSTS for metric in study.metrics if metric.is_cost and metric.name == name]
    result = _table(["cost of"], [cost.name for cost in costs])
    for cell in study.cells:
        result.add_row(cell.label, *(_spent(cost.name, mean_of(cell, cost)) for cost in costs))
    return result


def _table(left: Sequence[str], right: Sequence[str], rest: Sequence[str] = ()) -> Table:
    result = Table(box=None, pad_edge=False)
    for name in left:
        result.add_column(name, no_wrap=True)
    for name in right:
        result.add_column(name, justify="right", no_wrap=True)
    for name in rest:
        result.add_column(name, no_wrap=True)
    return result


def remarks(study: Study, metrics: Sequence[Metric]) -> list[str]:
    """How to read the table, and which metrics can tell the points apart at this budget."""
    lines = ["± reaches of 95 % intervals: of a mean, over its seeds; of a difference, paired by seed, spread pooled."]
    resolving: list[str] = []
    blind: list[str] = []
    untold: list[str] = []
    compared = 0
    for metric in metrics:
        found = [estimate for estimate in differences(study, metric).values() if estimate is not None]
        reaches = [estimate.reach for estimate in found if estimate.reach is not None]
        compared += len(reaches)
        if not found:
            continue
        if not reaches:
            untold.append(metric.name)
            continue
        told = sum(estimate.beyond_noise for estimate in found)
        line = f"{metric.name} ({told} of {len(found)}; resolves {max(reaches):.2g})"
        (resolving if told else blind).append(line)
    if resolving:
        lines.append(f"Tells points from the baseline at this budget: {', '.join(resolving)}.")
    if blind:
        lines.append(f"Does not, so do not rank by it: {', '.join(blind)}.")
    if untold:
        lines.append(f"One seed cannot tell a difference from noise: {', '.join(untold)}.")
    if compared > 1:
        lines.append(f"{compared} comparisons in all, each at 95 %: expect about {compared * 0.05:.1f} false alarms.")
    lines += [line for metric in metrics for line in caveats.pooling(study, metric)]
    return lines + caveats.starting_noises(study, metrics)


def frame(study: Study) -> pd.DataFrame:
    """One line per cell and metric: mean, interval, difference to the baseline, verdict."""
    lines = []
    for metric in study.metrics:
        found = differences(study, metric)
        for cell in study.cells:
            mean, apart = mean_of(cell, metric), found[cell.label]
            if mean is None:
                continue
            lines.append(
                {
                    **cell.values,
                    "metric": metric.name,
                    "protocol": metric.protocol,
                    "runs": mean.n,
                    "mean": mean.mean,
                    "reach": mean.reach,
                    "difference": apart.mean if apart else None,
                    "difference_reach": apart.reach if apart else None,
                    "verdict": _verdict(study, cell, apart),
                }
            )
    return pd.DataFrame(lines)


def _compared(study: Study, cell: Cell, metric: Metric, estimate: Estimate | None) -> str:
    if cell.label in study.baselines:
        return "baseline"
    if estimate is not None:
        return _difference(estimate)
    if mean_of(cell, metric) is None:
        return ""
    partner = study.partner.get(cell.label)
    return f"no value of {partner} to compare with" if partner else "no baseline among the points"


def _difference(estimate: Estimate) -> str:
    if estimate.reach is None:
        return f"{estimate.mean:+.3g} (one seed)"
    mean = 0.0 if abs(estimate.mean) < 1e-9 * estimate.reach else estimate.mean  # what rounding left of nothing
    told = f"{mean:+.3g} ±{estimate.reach:.2g}"
    return told if estimate.beyond_noise else f"{told}  within noise"


def _verdict(study: Study, cell: Cell, estimate: Estimate | None) -> str:
    if cell.label in study.baselines:
        return "baseline"
    if estimate is None:
        return ""
    if estimate.reach is None:
        return "one seed"
    return "beyond noise" if estimate.beyond_noise else "within noise"


def _mean(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate.mean:.4g}" + (f" ±{estimate.reach:.2g}" if estimate.reach is not None else "")


def _spent(name: str, estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    if name in TIMED:
        reach = "" if estimate.reach is None else f" ±{_digits(estimate.reach, 2)}"
        return f"{_digits(estimate.mean, 3)}{reach}"
    return f"{estimate.mean / 1e6:.3g}M" if name == "params" else f"{estimate.mean:.4g}"


def _digits(value: float, digits: int) -> str:
    """That many, and zeros where others would be: 1090, not 1.09e+03."""
    return f"{float(f'{value:.{digits}g}'):.15g}"


def missing(folder: Path, study: Study, identities: Sequence[str]) -> list[str]:
    """Runs without a result and metrics without a value, each with its reason: never a silent hole."""
    states = runs(folder, identities).set_index("run")
    with_rows = {run for metric in study.metrics for run in metric.values}
    lines = []
    for cell in study.cells:
        for seed, run in cell.runs.items():
            status, failure = states.at[run, "status"], states.at[run, "failure"]
            reason = failure if isinstance(failure, str) else str(status)
            if status == "done" and run not in with_rows and not isinstance(failure, str):
                reason = "done, but its rows are gone"
            if status != "done" or run not in with_rows:
                lines.append(f"missing: {cell.label} {seed}: {reason} ({run})")
    done = [run for run in identities if states.at[run, "status"] == "done"]
    return lines + lines_of_many(read_unscored(RunDirectory(folder.parent, run).unscored) for run in done)


def _render(table: Table) -> str:
    text = io.StringIO()
    Console(file=text, width=UNWRAPPED, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def as_tree(folder: Path) -> dict[str, Any]:
    """The answer for machines: every metric of every cell, and what is missing."""
    study, identities = _studied(folder, read_plan(folder))
    lines = json.loads(frame(study).to_json(orient="records", double_precision=15))
    return {
        "sweep": study.name,
        "question": study.question,
        "cells": lines,
        "missing": missing(folder, study, identities),
    }


def _studied(folder: Path, plan: Mapping[str, Any]) -> tuple[Study, list[str]]:
    """The plan's cells with what their runs gave, and the runs."""
    identities = [point["run"] for point in plan["points"]]
    return study_of(plan, load(folder, identities)), identities


def main(given: Sequence[str]) -> int:
    options = answer_parser().parse_args(given)
    return finish(lambda: _answer(options))


def _answer(options: argparse.Namespace) -> int:
    folder = find_sweep(options.results, options.sweep)
    print(json.dumps(as_tree(folder), indent=2) if options.json else answer(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
