"""How fast this machine trained before, from the rows that finished runs left."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml

from study.estimate import Record, Speed
from study.provenance import cpu_name

TRAINING = 3  # forward passes per training image, backward included
LATEST = 50  # runs looked at


def recorded_speed(results: Path) -> Speed:
    """From the newest runs of a store that trained on a machine like this one."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    here = {"cpu": cpu_name(), "device": device}
    files = sorted(results.glob("runs/*/rows.jsonl"), key=_time, reverse=True)
    records = (_record(path, here) for path in files[:LATEST])
    return Speed(tuple(record for record in records if record is not None))


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # a run that is being set aside
        return 0.0


def _record(rows: Path, here: dict[str, str]) -> Record | None:
    """None for a run of another machine, and for one that cannot be read: an estimate is no place to complain."""
    try:
        return _read(rows, here)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return None


def _read(rows: Path, here: dict[str, str]) -> Record | None:
    values: dict[str, float] = {}
    for line in rows.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if any(row["provenance"].get(key) != value for key, value in here.items()):
            return None
        if row["provenance"].get("ranks", "1") != "1":  # their rate is that of several processes, or machines
            return None
        values[row["metric"]] = row["value"]
    if not {"gmacs", "images_per_second"} <= values.keys():
        return None
    config = yaml.load((rows.parent / "config.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    return Record(config["backbone"]["name"], TRAINING * values["gmacs"] * values["images_per_second"])
