"""`python -m study.score SAMPLES REFERENCE`: what samples score, the floor of real images first."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from study.atomic import write_json
from study.command_line import finish
from study.options import score_parser
from study.score.inception_weights import SHA256, InceptionWeights
from study.score.pictures import Pictures, read, reference_of_run
from study.score.scoring import (
    FLOOR,
    Options,
    Score,
    cache_folder,
    check_device,
    check_sizes,
    draw_size,
    floor,
    own_space,
    score,
)

IN_OWN_SPACE = ("agreement", "fd", "fd_inf", "kd", "precision_", "recall_", "density_", "coverage_", "swd", "swd_inf")
IN_INCEPTION = ("fid", "sfid", "is", "kid", "precision", "recall", "swd", "swd_inf")


def main(arguments: Sequence[str] | None = None) -> int:
    given = score_parser().parse_args(arguments)
    return finish(lambda: _score(given), (ValueError,))


def _score(given: argparse.Namespace) -> int:
    torch.set_float32_matmul_precision("highest")
    samples = read(given.samples, str(given.results), given.n)
    reference = read_reference(given)
    metrics = given.metrics or default_metrics(samples, reference)
    weights = InceptionWeights(given.inception_weights, given.inception_sha256 or SHA256)
    cache = None if given.no_cache else cache_folder()
    options = Options(given.n, given.draws, given.seed, weights, given.device, cache)
    check_device(options.device)
    check_sizes(samples, reference, options)
    with Bar() as bar:
        real = floor(reference, draw_size(samples, options), metrics, options, bar.tell)
        scores = score(samples, reference, metrics, options, bar.tell)
    told = [plain(one) for one in (*real, *scores)]
    if given.out:
        write_json(given.out, told)
    if given.json:
        print(json.dumps(told, indent=2))
    else:
        show(samples, reference, scores, real)
    return 1 if any(one.value is None for one in scores) else 0


def read_reference(given: argparse.Namespace) -> Pictures:
    if given.reference:
        return read(given.reference, str(given.results))
    run = Path(given.results) / "runs" / given.samples
    if not run.is_dir():
        raise ValueError(f"REFERENCE is missing: {given.samples!r} is not a run under {given.results}/runs")
    return reference_of_run(run)


def default_metrics(samples: Pictures, reference: Pictures) -> list[str]:
    own = own_space(reference.data or samples.data)
    if own is None:
        return list(IN_INCEPTION)
    labelled = samples.labels is not None
    return [f"{name}{own}" if name.endswith("_") else name for name in IN_OWN_SPACE if labelled or name != "agreement"]


class Bar:
    """One line per set of images on its way through an extractor, on standard error."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._tasks: dict[tuple[str, int], TaskID] = {}

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def tell(self, what: str, done: int, total: int) -> None:
        if (what, total) not in self._tasks:
            self._tasks[what, total] = self._progress.add_task(what, total=total)
        self._progress.advance(self._tasks[what, total], done)


def show(samples: Pictures, reference: Pictures, scores: Sequence[Score], real: Sequence[Score]) -> None:
    """The floor first: what real images score that the reference does not hold."""
    table = Table(title=f"against {len(reference)} images of {reference.name}")
    for column, align in (("images", "left"), ("metric", "left"), ("value", "right"), ("95 %", "left"), ("", "left")):
        table.add_column(column, justify="right" if align == "right" else "left", overflow="fold")
    for one in real:
        table.add_row("real, held out", one.metric.removesuffix(FLOOR), *cells(one))
    if not real:
        why = f"unknown: of what data {reference.name} is, and so which other images are real, is not known"
        table.add_row("real, held out", "", "n/a", "", why)
    table.add_section()
    for one in scores:
        table.add_row(samples.name, one.metric, *cells(one))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def cells(one: Score) -> tuple[str, str, str]:
    """Value, interval, and units with the spread over draws, or the reason why there is none."""
    if one.value is None:
        return "n/a", "", one.reason
    interval = f"[{one.interval[0]:.4g}, {one.interval[1]:.4g}]" if one.interval else ""
    spread = f"{len(one.draws)} draws: {min(one.draws):.4g} to {max(one.draws):.4g}" if one.draws else ""
    return f"{one.value:.4g}", interval, f"{one.units} {spread}".strip()


def plain(one: Score) -> dict[str, object]:
    return {**asdict(one), "protocol_id": one.protocol.id}


if __name__ == "__main__":
    sys.exit(main())
