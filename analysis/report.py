"""A study as one page to send to a colleague, with its figures and tables as files beside it.

    write_report([Path("results/ablate_M")], Path("results/ablate_M/report"))

leaves `report.html`, which holds everything, and `figures/*.png|svg`, `tables/*.csv|tex`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis import page, render, tables
from analysis.figures.pictures import sample_grid, strips
from analysis.figures.points import points, tradeoff
from analysis.figures.training import loss_by_noise, loss_curves, points_at_equal_compute
from analysis.findings import findings, headline_metrics
from analysis.rows import Rows, load_rows
from analysis.style import describe, encode
from study.atomic import write_file, write_text

MANY = 40  # points beyond which curves cannot be told apart


@dataclass(frozen=True)
class Part:
    """A figure or a table, made when it is written."""

    name: str
    heading: str
    make: Callable[[], Figure | pd.DataFrame]


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """The page and its files; its path."""
    studies = [load_rows(folder) for folder in folders]
    title = "Study: " + ", ".join(rows.name for rows in studies)
    body = [page.heading(1, title)]
    if len(studies) > 1:
        body.append(page.contents([(rows.name, rows.name) for rows in studies]))
    for rows in studies:
        body += [page.heading(2, rows.name, rows.name), *_opening(rows), *_parts(rows, out), *_origin(rows)]
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.html"
    write_text(path, page.page(title, body))
    return path


def _opening(rows: Rows) -> Iterator[str]:
    if rows.study.question:
        yield page.paragraph(rows.study.question, "question")
    if rows.study.metrics:
        yield page.finding(findings(rows))
    yield from (page.paragraph(remark, "remark") for remark in rows.remarks)


def _parts(rows: Rows, out: Path) -> Iterator[str]:
    for part in _contents(rows):
        yield page.heading(3, part.heading)
        made = part.make()
        name = f"{_slug(rows.name)}-{part.name}"
        yield _figure(made, name, out) if isinstance(made, Figure) else _table(made, name, out)


def _contents(rows: Rows) -> Iterator[Part]:
    """What this study has to show, in the order of the argument."""
    if not rows.study.cells:
        return
    yield Part("comparison", "Every point against its baseline", partial(tables.comparison, rows))
    if not rows.study.metrics:
        return
    for metric in headline_metrics(rows):
        yield Part(_slug(metric), metric, partial(points, rows, metric))
    main = next(iter(headline_metrics(rows)), "val_loss")
    yield Part("cost", "What the points cost", partial(tables.spent, rows))
    yield Part("tradeoff", "Quality against cost", partial(tradeoff, rows, main))
    yield Part("pareto", "Which points nothing cheaper beats", partial(tables.pareto, rows, main))
    if _logged(rows):
        yield Part("curves", "While training", partial(loss_curves, rows))
        yield Part("equal_compute", "At equal compute", partial(tables.equal_compute, rows))
        yield Part("equal_compute_points", "At equal compute, drawn", partial(points_at_equal_compute, rows))
        yield Part("noise", "By level of noise", partial(loss_by_noise, rows))
    if any(rows.directory(run).grid.exists() for cell in rows.study.cells for run in cell.runs.values()):
        yield Part("samples", "Samples", lambda: sample_grid(strips(rows)))


def _logged(rows: Rows) -> bool:
    """Whether curves can be drawn: some were logged, and few enough to be told apart."""
    few = len(rows.study.cells) <= MANY
    return few and any(metric.name == "val_loss" for metric in rows.study.metrics) and not rows.curves.empty


def _figure(figure: Figure, name: str, out: Path) -> str:
    png = encode(figure, "png", dpi=140)
    _write(out / "figures" / f"{name}.png", png)
    _write(out / "figures" / f"{name}.svg", encode(figure, "svg"))
    return page.picture(png, describe(figure))


def _table(frame: pd.DataFrame, name: str, out: Path) -> str:
    folder = out / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / f"{name}.csv", lambda path: frame.to_csv(path, index=False))
    write_text(folder / f"{name}.tex", render.latex(frame))
    return page.wide(render.html(page.beginning(frame)))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda temporary: temporary.write_bytes(content))


def _origin(rows: Rows) -> Iterator[str]:
    yield page.heading(3, "Where the numbers come from")
    names = [str(name) for name in rows.tidy if str(name).startswith("provenance.")]
    facts = {name.removeprefix("provenance."): rows.tidy[name] for name in names}
    lines = [(name, value, count) for name, column in facts.items() for value, count in _values(column)]
    if lines:
        frame = pd.DataFrame(lines, columns=["fact", "value", "rows"])
        yield page.wide(render.html(render.table(frame, "As recorded with every row")))
    protocols = rows.tidy[["metric", "protocol"]].drop_duplicates() if len(rows.tidy) else rows.tidy
    if len(protocols):
        counted = protocols.groupby("protocol", observed=True)["metric"].agg(lambda names: ", ".join(map(str, names)))
        told = ["Rows of different protocols are never averaged, ranked or drawn on one axis."]
        yield page.wide(render.html(render.table(counted.reset_index(), "Protocols", told)))
    yield page.heading(3, "How to reproduce")
    yield page.code(_reproduction(rows))


def _values(column: pd.Series[str]) -> list[tuple[str, int]]:
    """Each value a fact takes and in how many rows; numbers that differ everywhere are left out."""
    counts = column.dropna().astype(str).value_counts()
    return [(str(value), int(count)) for value, count in counts.items()] if len(counts) <= 8 else []


def _reproduction(rows: Rows) -> str:
    commits = (
        sorted(set(rows.tidy["provenance.commit"].dropna().astype(str))) if "provenance.commit" in rows.tidy else []
    )
    lines = [f"git checkout {commit}" for commit in commits[:1]]
    frozen = rows.path / "sweep.yaml"
    if not frozen.exists():
        return "\n".join([*lines, "# these runs belong to no sweep: each runs/<id>/config.yaml says how it was made"])
    text = frozen.read_text(encoding="utf-8").rstrip()
    return "\n".join([f"# sweeps/{rows.name}.yaml", text, "", *lines, f"python -m study.sweep sweeps/{rows.name}.yaml"])


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
