"""Whole studies written file by file, with numbers known in closed form: nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from study.results import Row, write_rows
from study.sample_files import write_grid

BINS = 4
SEEDS = (0, 1, 2)
VAL, SCORE = "val-digits8-00000000", "fd_digits8@100-000000000000"


def write_study(
    results: Path,
    name: str = "ablate_M",
    key: str = "backbone.M",
    values: Sequence[Any] = (1, 2, 4),
    seeds: Sequence[int] = SEEDS,
    baseline: Mapping[str, Any] | None = None,
    failed: Mapping[str, str] | None = None,
    protocols: Mapping[Any, str] | None = None,
    noise: float = 0.001,
) -> Path:
    """A finished sweep: the loss grows by 0.1 per value; `failed` maps run ids to failure classes."""
    points = [
        {"run": run_name(name, value, seed), "label": "", "values": {key: value, "seed": seed}, "sizes": ""}
        for value, seed in product(values, seeds)
    ]
    plan = {
        "sweep": name,
        "question": f"Does {key} matter?",
        "axes": {key: list(values), "seed": list(seeds)},
        "together": [[key], ["seed"]],
        "baseline": {key: values[0]} if baseline is None else dict(baseline),
        "points": points,
    }
    folder = results / name
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    (folder / "sweep.yaml").write_text("axes: {}\n", encoding="utf-8")
    random = np.random.default_rng(0)
    for index, (point, (value, seed)) in enumerate(zip(points, product(values, seeds), strict=True)):
        failure = (failed or {}).get(point["run"])
        place = values.index(value)
        loss = 1 + 0.1 * place + seed + float(random.normal()) * noise
        protocol = (protocols or {}).get(value, VAL)
        write_run(
            results, point["run"], {key: value}, seed, loss, 12.0 / (place + 1), failure, protocol, samples=index < 12
        )
    return folder


def run_name(name: str, value: Any, seed: int) -> str:
    return f"{name}-{value}-{seed}".replace("/", "_")


def write_run(
    results: Path,
    run: str,
    config: Mapping[str, Any],
    seed: int,
    loss: float,
    gmacs: float,
    failure: str | None = None,
    protocol: str = VAL,
    samples: bool = True,
) -> None:
    folder = results / "runs" / run
    folder.mkdir(parents=True)
    tree: dict[str, Any] = {"backbone": {"name": "diffussm"}, "data": {"name": "digits8"}, "seed": seed}
    for key, value in config.items():
        section, _, field = key.partition(".")
        tree[section] = {**tree.get(section, {}), field: value} if field else value
    (folder / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    state = {"status": "failed" if failure else "done", "attempts": 1, "failure": failure}
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
    if failure:
        return
    write_rows(folder / "rows.jsonl", rows_of(run, loss, gmacs, protocol))
    points = [{"images": images, **losses(loss * 1000 / images)} for images in (500, 1000, 2000)]
    (folder / "curve.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points), encoding="utf-8")
    if samples:
        images = torch.full((20, 1, 8, 8), seed, dtype=torch.uint8)
        images += torch.arange(20, dtype=torch.uint8)[:, None, None, None]
        write_grid(folder / "samples.png", images)


def losses(loss: float) -> dict[str, float]:
    return {"val_loss": loss, **{f"val_loss_bin{index}": loss / (index + 1) for index in range(BINS)}}


def rows_of(run: str, loss: float, gmacs: float, protocol: str = VAL) -> list[Row]:
    facts = {"commit": "0123456789abcdef", "dirty": "false", "torch": "2.15.0", "device": "cpu", "cpu": "a CPU"}
    measured = [(name, value, protocol) for name, value in losses(loss).items()]
    measured += [("fd_digits8@100", loss * 2, SCORE), ("agreement_digits8@100", 0.5, SCORE)]
    measured += [("gmacs", gmacs, "cost-1"), ("params", gmacs * 1e6, "cost-1"), ("train_pflops", gmacs, "cost-1")]
    measured += [("train_seconds", gmacs, "speed-1")]
    return [
        Row(run=run, metric=name, value=value, units="", n=100, protocol=of, provenance=facts)
        for name, value, of in measured
    ]
