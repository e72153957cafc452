"""Small stores of results written by hand: a sweep's plan, its runs' states, rows and curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from study.results import Row, write_rows

Runs = Mapping[tuple[int, int], Mapping[str, float]]  # by (M, seed): the metrics
PROVENANCE = {"reference": "digits8 train"}


def sweep(
    folder: Path,
    runs: Runs,
    failures: Mapping[tuple[int, int], str] | None = None,
    baseline: int | None = 1,
    protocols: Mapping[tuple[int, int], str] | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Path:
    """A sweep over M and seed in `folder`/demo; runs without metrics failed, or are pending if no reason is given."""
    points = []
    for (ratio, seed), metrics in runs.items():
        run = f"{ratio:x}{seed:x}".rjust(16, "0")
        values = {"backbone.M": ratio, "seed": seed}
        points.append({"run": run, "label": "", "values": values, "sizes": ""})
        failure = (failures or {}).get((ratio, seed))
        protocol = (protocols or {}).get((ratio, seed), "val-1")
        _run(folder / "runs" / run, ratio, seed, metrics, failure, protocol, provenance or PROVENANCE)
    plan = {
        "sweep": "demo",
        "question": "Does M matter?",
        "axes": {"backbone.M": sorted({m for m, _ in runs}), "seed": sorted({s for _, s in runs})},
        "together": [["backbone.M"], ["seed"]],
        "baseline": {} if baseline is None else {"backbone.M": baseline},
        "points": points,
    }
    place = folder / "demo"
    place.mkdir(parents=True)
    (place / "plan.json").write_text(json.dumps(plan))
    return place


def _run(
    folder: Path,
    ratio: int,
    seed: int,
    metrics: Mapping[str, float],
    failure: str | None,
    protocol: str,
    provenance: Mapping[str, str],
) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"backbone: {{name: diffussm, M: {ratio}}}\nseed: {seed}\n")
    status = "done" if metrics else "failed" if failure else "pending"
    (folder / "state.json").write_text(json.dumps({"status": status, "failure": failure, "attempts": 1}))
    rows = [
        Row(
            run=folder.name,
            metric=name,
            value=value,
            units="",
            n=1,
            protocol="cost-1" if name in ("params", "gmacs", "train_pflops") else protocol,
            provenance=dict(provenance),
        )
        for name, value in metrics.items()
    ]
    write_rows(folder / "rows.jsonl", rows)


def losses(table: Mapping[int, Sequence[float]], metric: str = "val_loss") -> dict[tuple[int, int], dict[str, float]]:
    """One metric per M and seed, with costs that fall with M."""
    return {
        (ratio, seed): {metric: value, "params": 1e5 * ratio, "gmacs": 0.01 / ratio}
        for ratio, values in table.items()
        for seed, value in enumerate(values)
    }
