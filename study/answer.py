"""What a sweep found: its table, what is noise and what is not, and its plots.

python -m study.answer results/ablate_M
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from study.atomic import write_file, write_text
from study.comparison import Cell, Estimate, Metric, Study, difference, mean_of, read_study
from study.store import load, runs
from study.strict import ConfigError

UNWRAPPED = 180  # columns
SHOWN = 5  # metrics in the printed table; the CSV has all
COSTS = ("params", "gmacs", "train_pflops", "images_per_second", "train_seconds")
DETAIL = re.compile(r"val_loss_bin(?!0$)\d+$")  # bin 0, the least noise, is where loss of detail shows


def answer(folder: Path) -> str:
    """The text a sweep ends with; the plots and the full table are written beside its plan."""
    study = read_study(folder, load(folder))
    chosen = shown_metrics(study)
    tables = [_render(quality_table(study, chosen)), "", _render(cost_table(study)), ""]
    parts = [study.question, "", *tables, *remarks(study, chosen), *_missing(folder, study)]
    write_file(folder / "answer.csv", lambda path: frame(study).to_csv(path, index=False))
    write_text(folder / "answer.txt", "\n".join(parts) + "\n")
    files = [folder / "answer.csv", *draw(study, chosen, folder)]
    return "\n".join([*parts, *map(str, files)])


def shown_metrics(study: Study) -> list[Metric]:
    """Quality metrics without the details, the first protocol of each."""
    chosen: dict[str, Metric] = {}
    for metric in study.metrics:
        if not metric.is_cost and not DETAIL.match(metric.name):
            chosen.setdefault(metric.name, metric)
    return list(chosen.values())[:SHOWN]


def quality_table(study: Study, metrics: Sequence[Metric]) -> Table:
    """Per metric and cell: the mean over seeds, and its difference to the baseline."""
    result = _table(["metric", "point"], ["runs", "mean"], ["difference to baseline"] if study.partner else [])
    for metric in metrics:
        for index, cell in enumerate(study.cells):
            done = sum(run in metric.values for run in cell.runs.values())
            row = [
                metric.name if not index else "",
                cell.label,
                f"{done}/{len(cell.runs)}",
                _mean(mean_of(cell, metric)),
            ]
            row += [_compared(study, cell, metric)] if study.partner else []
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
    compared = 0
    for metric in metrics:
        found = [d for d in (difference(study, cell, metric) for cell in study.cells) if d is not None]
        reaches = [d.reach for d in found if d.reach is not None]
        compared += len(found)
        if not found:
            continue
        if not reaches:
            lines.append(f"{metric.name}: one seed cannot tell a difference from noise")
            continue
        told = sum(d.beyond_noise for d in found)
        line = (
            f"{metric.name} tells {told} of {len(found)} from the baseline; the least it resolves is {max(reaches):.2g}"
        )
        lines.append(line + ("" if told else ": do not rank by it at this budget"))
    if compared > 1:
        lines.append(f"{compared} comparisons in all, each at 95 %: expect about {compared * 0.05:.1f} false alarms.")
    return lines


def frame(study: Study) -> pd.DataFrame:
    """One line per cell and metric: mean, interval, difference to the baseline, verdict."""
    lines = []
    for cell in study.cells:
        for metric in study.metrics:
            mean, apart = mean_of(cell, metric), difference(study, cell, metric)
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


def draw(study: Study, metrics: Sequence[Metric], folder: Path) -> list[Path]:
    """One small figure per metric: by point, and against what training cost."""
    from matplotlib.figure import Figure

    spent = next((metric for metric in study.metrics if metric.name == "train_pflops"), None)
    files = []
    for metric in metrics:
        figure = Figure(figsize=(7, 2.8), layout="constrained")
        by_point, by_cost = figure.subplots(1, 2, sharey=True)
        for index, cell in enumerate(study.cells):
            estimate = mean_of(cell, metric)
            values = [metric.values[run] for run in cell.runs.values() if run in metric.values]
            cost = mean_of(cell, spent) if spent else None
            colour = "0.35" if cell.label in study.baselines else "C0"
            for axis, x in ((by_point, float(index)), (by_cost, cost.mean if cost else None)):
                if estimate is not None and x is not None:
                    axis.plot([x] * len(values), values, ".", color=colour, alpha=0.5, markersize=5)
                    axis.plot([x], [estimate.mean], "_", color=colour, markersize=14)
        by_point.set_xticks(range(len(study.cells)), [cell.label for cell in study.cells])
        if len(study.cells) > 4:
            by_point.tick_params(axis="x", rotation=60)
        by_point.set_ylabel(metric.name)
        by_point.set_title("dots: seeds; bars: means; grey: baseline", fontsize=8)
        by_cost.set_xlabel("training PFLOPs")
        path = folder / "plots" / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', metric.name)}.png"
        path.parent.mkdir(exist_ok=True)
        write_file(path, partial(figure.savefig, format="png", dpi=130))
        files.append(path)
    return files


def _compared(study: Study, cell: Cell, metric: Metric) -> str:
    return "baseline" if cell.label in study.baselines else _difference(difference(study, cell, metric))


def _difference(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    if estimate.reach is None:
        return f"{estimate.mean:+.3g} (one seed)"
    told = f"{estimate.mean:+.3g} ±{estimate.reach:.2g}"
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
    return f"{estimate.mean / 1e6:.3g}M" if name == "params" else f"{estimate.mean:.4g}"


def _missing(folder: Path, study: Study) -> list[str]:
    """Runs without a result, each with its reason: never a silent hole."""
    states = runs(folder).set_index("run")
    lines = []
    for cell in study.cells:
        for seed, run in cell.runs.items():
            status, failure = (states.at[run, "status"], states.at[run, "failure"]) if run in states.index else ("", "")
            if status != "done":
                reason = failure if isinstance(failure, str) else str(status)
                lines.append(f"missing: {cell.label} {seed}: {reason} ({run})")
    return lines


def _render(table: Table) -> str:
    text = io.StringIO()
    Console(file=text, width=UNWRAPPED, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def main(given: Sequence[str]) -> int:
    if len(given) != 1 or given[0].startswith("-"):
        print(__doc__)
        return 0 if given and given[0] in ("-h", "--help") else 2
    try:
        print(answer(Path(given[0])))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
