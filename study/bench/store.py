"""Where measurements go: a folder per machine, itself a result store, with every sample beside its rows.

<folder>/runs/<cell>/{config.yaml, rows.jsonl, state.json}    what `study.store.load` reads
<folder>/samples.parquet                                      every sample, as it was taken
<folder>/table.csv, table.md                                  the numbers, to read
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from models.denoiser import require
from study.atomic import write_file, write_json, write_text
from study.bench.config import Cell, Protocol, cell_from_tree
from study.bench.rows import Line, Measured, lines_of, rows_of
from study.bench.schedule import Taken
from study.bench.table import markdown, table_line
from study.bench.timing import Sample
from study.provenance import cpu_name
from study.results import write_rows
from study.strict import to_tree

SAMPLES, TABLE = "samples.parquet", "table.csv"
PLACE = ("repeat", "block", "turn")


def machine_folder(device: str, results: Path = Path("results/bench")) -> Path:
    """One folder per machine, named after what computes."""
    name = (
        torch.cuda.get_device_name(torch.device(device)) if device != "cpu" else f"{cpu_name()} {os.cpu_count()} cores"
    )
    return results / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def save(folder: Path, measured: Sequence[Measured], protocol: Protocol) -> list[dict[str, Any]]:
    """Write cells into a folder, beside others that are there; the table's lines come back."""
    everything = [(each, list(lines_of(each, protocol))) for each in measured]
    for each, lines in everything:
        run = folder / "runs" / each.cell.id
        run.mkdir(parents=True, exist_ok=True)
        tree = {"name": each.cell.subject.name, **to_tree(each.cell)}
        write_text(run / "config.yaml", yaml.safe_dump(tree, sort_keys=False))
        write_json(run / "state.json", state_of(lines))
        write_rows(run / "rows.jsonl", rows_of(lines, protocol))
    table = [table_line(line) for _, lines in everything for line in lines]
    fresh = {each.cell.id for each in measured}
    _merge(folder / SAMPLES, samples_frame(measured), fresh)
    whole = _merge(folder / TABLE, pd.DataFrame(table), fresh)
    write_text(folder / "table.md", markdown(whole.to_dict("records")))
    facts = next((each.facts for each in measured if each.facts), {})
    peaks = {f"{each.peaks.dtype}": asdict(each.peaks) for each in measured if each.peaks}
    write_json(folder / "machine.json", {"provenance": facts, "protocol": asdict(protocol), "peaks": peaks})
    return table


def state_of(lines: Sequence[Line]) -> dict[str, Any]:
    """What the store tells of a cell: one that was rejected or did not fit is not finished."""
    rejected = [line for line in lines if line.reported is None]
    failure = "; ".join(dict.fromkeys(f"{line.metric}: {line.note}" for line in rejected)) or None
    return {"status": "failed" if failure else "finished", "failure": failure, "attempts": 1}


def samples_frame(measured: Sequence[Measured]) -> pd.DataFrame:
    lines = [
        {
            "cell": each.cell.id,
            **{name: getattr(taken, name) for name in PLACE},
            **{f"phase{number}": seconds for number, seconds in enumerate(taken.sample.phases)},
            "wall": taken.sample.wall,
            "cpu": taken.sample.cpu,
        }
        for each in measured
        for taken in each.outcome.taken
    ]
    frame = pd.DataFrame(lines) if lines else pd.DataFrame(columns=["cell", *PLACE, "wall", "cpu"])
    return frame.reindex(columns=["cell", *PLACE, "phase0", "phase1", "phase2", "wall", "cpu"])


def everything(measured: Sequence[Measured], protocol: Protocol) -> dict[str, Any]:
    """All that was seen and all that was made of it, as plain values."""
    cells = [
        {
            "cell": each.cell.id,
            "config": to_tree(each.cell),
            "out_of_memory": each.outcome.out_of_memory,
            "warm_ups": [opened["warm_up"] for opened in each.outcome.opened],
            "notes": {line.metric: line.note for line in lines_of(each, protocol) if line.note},
            "rows": [asdict(row) for row in rows_of(list(lines_of(each, protocol)), protocol)],
            "samples": [
                {name: getattr(taken, name) for name in PLACE} | taken.sample._asdict() for taken in each.outcome.taken
            ],
        }
        for each in measured
    ]
    return {"protocol": asdict(protocol), "cells": cells}


def read_samples(folder: Path) -> dict[str, list[Taken]]:
    """Every cell's samples, as they were taken, by cell."""
    file = folder / SAMPLES
    require(file.is_file(), "results", str(folder), f"a folder that python -m study.bench wrote, with {SAMPLES}")
    found: dict[str, list[Taken]] = {}
    for cell, repeat, block, turn, *numbers in pd.read_parquet(file).itertuples(index=False, name=None):
        phases = tuple(seconds for seconds in numbers[:-2] if seconds == seconds)  # NaN: fewer phases
        found.setdefault(cell, []).append(Taken(repeat, block, turn, Sample(phases, *numbers[-2:])))
    return found


def read_cell(folder: Path, identity: str) -> Cell:
    """The cell that a folder of the store was written for."""
    tree = yaml.safe_load((folder / "runs" / identity / "config.yaml").read_text(encoding="utf-8"))
    tree.pop("name")
    return cell_from_tree(tree)


def read_machine(folder: Path) -> dict[str, Any]:
    machine: dict[str, Any] = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
    return machine


def _merge(file: Path, new: pd.DataFrame, fresh: set[str]) -> pd.DataFrame:
    """Put new lines beside those of other cells already in the file."""
    parquet = file.suffix == ".parquet"
    if file.exists():
        old = pd.read_parquet(file) if parquet else pd.read_csv(file)
        kept = old[~old["cell"].isin(fresh)]
        new = pd.concat([part for part in (kept, new) if len(part)], ignore_index=True) if len(kept) else new
    if parquet:
        write_file(file, lambda path: new.to_parquet(path, index=False, compression="zstd"))
    else:
        write_file(file, lambda path: new.to_csv(path, index=False, float_format="%.6g"))
    return new
