"""Costs as rows, and rows as a terminal table, JSON, CSV or LaTeX.

Columns say their unit. One MAC is one multiply-accumulate: the papers' "Gflops" are `gmacs`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.box import HEAVY_HEAD, SIMPLE_HEAD, Box
from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from models.denoiser import DenoiserConfig
from models.macs import Macs
from study.cost.audit import AuditRow, audit, claims
from study.cost.memory import Precision, training_memory
from study.cost.published import published_model
from study.cost.summary import Cost
from study.cost.tracer import trace, training_macs

Row = dict[str, object]
CONVENTION = "gmacs: 1e9 multiply-accumulates of one image through one denoiser call; the papers call them Gflops."


@dataclass(frozen=True)
class Asked:
    """What to derive beyond a network's own cost."""

    steps: int = 250
    guided: bool = False
    images: float | None = None  # of a training run
    batch: int | None = None  # for memory
    precision: Precision = "fp32"
    exact: bool = False  # trace the backward pass


def row(cost: Cost, asked: Asked) -> Row:
    """Everything about one network in flat columns."""
    parts = {f"{part}_g": value / 1e9 for part, value in cost.macs.parts().items()}
    columns: Row = {
        "backbone": cost.name,
        "px": cost.pixels,
        "tokens": cost.tokens,
        "params_m": cost.parameters.total / 1e6,
        "trainable_m": cost.parameters.trainable / 1e6,
        "gmacs": cost.macs.total / 1e9,
        **parts,
        "train_gmacs": cost.training_macs / 1e9,
        f"sample{asked.steps}{'_guided' if asked.guided else ''}_tmacs": cost.sample_macs(asked.steps, asked.guided)
        / 1e12,
    }
    return columns | _run(cost, asked) | _exact(cost, asked) | _memory(cost.config, asked) | _published(cost)


def _run(cost: Cost, asked: Asked) -> Row:
    if asked.images is None:
        return {}
    return {
        "run_gmacs": cost.run_macs(asked.images) / 1e9,
        "run_train_gmacs": cost.run_training_macs(asked.images) / 1e9,
        "train_pflops": cost.train_pflops(asked.images),
    }


def _exact(cost: Cost, asked: Asked) -> Row:
    return {"train_exact_gmacs": training_macs(cost.config).matmul / 1e9} if asked.exact else {}


def _memory(config: DenoiserConfig, asked: Asked) -> Row:
    if asked.batch is None:
        return {}
    memory = training_memory(config, asked.batch, asked.precision)
    named = {
        "state": memory.persistent,
        "gradients": memory.gradients,
        "activations": memory.activations,
        "peak": memory.peak,
    }
    return {f"{name}_gib": value / 2**30 for name, value in named.items()}


def _published(cost: Cost) -> Row:
    found = published_model(cost.name, cost.pixels)
    if found is None:
        return dict.fromkeys(("published_gmacs", "published_off", "published_params_m", "published_in", "note"))
    return {
        "published_gmacs": found.gmacs,
        "published_off": None if found.gmacs is None else found.gmacs / (cost.macs.total / 1e9) - 1,
        "published_params_m": found.params_m,
        "published_in": f"{found.source} ({found.seen})",
        "note": found.note or None,
    }


def as_json(rows: Sequence[Row]) -> str:
    return json.dumps({"convention": CONVENTION, "rows": list(rows)}, indent=2)


def as_csv(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")


def as_latex(rows: Sequence[Row]) -> str:
    """A booktabs tabular of the filled columns, prose left out."""
    columns = [name for name in _filled(rows) if name not in ("note", "published_in")]
    align = "l" + "r" * (len(columns) - 1)
    lines = [_latex_line(columns), r"\midrule", *(_latex_line([_text(n, r[n]) for n in columns]) for r in rows)]
    return "\n".join([rf"\begin{{tabular}}{{{align}}}", r"\toprule", *lines, r"\bottomrule", r"\end{tabular}"])


def _latex_line(cells: Sequence[str]) -> str:
    escaped = (cell.replace("%", r"\%").replace("_", r"\_").replace("&", r"\&") for cell in cells)
    return " & ".join(escaped) + r" \\"


def print_rows(rows: Sequence[Row], console: Console) -> None:
    columns = [name for name in _filled(rows) if name not in ("note", "published_in")]
    lines = [[_text(name, r[name]) for name in columns] for r in rows]
    print_table(None, columns, lines, console)
    for r in rows:
        if r["note"]:
            console.print(f"{r['backbone']} at {r['px']} px, {r['published_in']}: {r['note']}.", highlight=False)
    console.print(CONVENTION, style="dim", highlight=False)


def _filled(rows: Sequence[Row]) -> list[str]:
    """Columns in which any row has something other than nothing or zero."""
    return [name for name in rows[0] if any(r[name] for r in rows)]


def _text(column: str, value: object) -> str:
    if value is None:
        return ""
    if column == "published_off" and isinstance(value, float):
        return f"{value:+.2%}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def print_table(title: str | None, columns: Sequence[str], lines: Iterable[Sequence[str]], console: Console) -> None:
    """Never cut: a table too wide for the terminal lies on its side or is set tighter; a pipe gets any width."""
    lines = list(lines)
    table = _table(title, columns, lines)
    if console.is_terminal and _width(table) > console.width:
        turned = list(zip(columns, *lines, strict=True))
        forms = (_table(title, turned[0], turned[1:]), _table(title, columns, lines, box=SIMPLE_HEAD))
        table = min(forms, key=_width)
    Console(file=console.file, width=max(console.width, _width(table))).print(table)


def _table(title: str | None, columns: Sequence[str], lines: Iterable[Sequence[str]], box: Box = HEAVY_HEAD) -> Table:
    table = Table(
        title=title, title_justify="left", box=box, pad_edge=box is HEAVY_HEAD, padding=(0, int(box is HEAVY_HEAD))
    )
    for name in columns:
        table.add_column(name, no_wrap=True, justify="left" if name in LEFT else "right")
    for line in lines:
        table.add_row(*line)
    return table


def _width(table: Table) -> int:
    return Console(width=10_000).measure(table).maximum


LEFT = ("backbone", "method", "verdict", "claim", "by the table")


def print_modules(cost: Cost, console: Console) -> None:
    """The traced cost of every module that has one, in the network's own order."""
    traced = trace(cost.config)
    branches = {"": Tree(f"{cost.name} at {cost.pixels} px: {_module_text(traced.macs)}")}
    for path in sorted(traced.by_module, key=_natural):
        macs = traced.by_module[path]
        if path and macs.total + macs.kernel:
            parent = next(up for up in _ancestors(path) if up in branches)
            label = path.removeprefix(parent).removeprefix(".")
            branches[path] = branches[parent].add(f"{label}  {_module_text(macs)}")
    console.print(branches[""], highlight=False)


def _ancestors(path: str) -> list[str]:
    pieces = path.split(".")[:-1]
    return [".".join(pieces[:n]) for n in range(len(pieces), -1, -1)]


def _natural(path: str) -> list[tuple[int, int, str]]:
    return [(1, int(piece), "") if piece.isdigit() else (0, 0, piece) for piece in path.split(".")]


def _module_text(macs: Macs) -> str:
    parts = [f"{part} {value / 1e9:.4g}" for part, value in macs.parts().items() if value and part != "elementwise"]
    return f"{macs.total / 1e9:.6g} gmacs" + (f" ({', '.join(parts)})" if len(parts) > 1 else "")


def print_audit(console: Console) -> None:
    """Published totals against images x MACs, and the comparisons drawn from them."""
    rows = audit()
    columns = ["method", "px", "images_m", "gmacs", "product", "printed", "implied", "verdict"]
    print_table("Total Gflops of the DiffuSSM table against images x gmacs", columns, map(_audited, rows), console)
    console.print(
        "product: images x gmacs. implied: printed / images. * : a printed gmacs, of a network that is not here.",
        highlight=False,
    )
    for r in rows:
        if r.why:
            console.print(f"{r.printed.method} at {r.printed.resolution} px: {r.why}.", highlight=False)
    sentences = [[c.text, c.found, "holds" if c.holds else "does not hold"] for c in claims()]
    print_table("What the text says of them", ["claim", "by the table", "verdict"], sentences, console)


def _audited(r: AuditRow) -> list[str]:
    gmacs = f"{r.gmacs:.1f}" + ("" if r.printed.backbone else "*")
    totals = [f"{r.recomputed:.3g}", _text("", r.printed.total_gflops), f"{r.implied_gmacs:.1f}"]
    return [r.printed.method, str(r.printed.resolution), _text("", r.printed.images_m), gmacs, *totals, r.verdict]
