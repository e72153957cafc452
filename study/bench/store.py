"""Where measurements go: a folder per machine, itself a result store, with every sample beside its rows.

<folder>/runs/<cell>/{config.yaml, rows.jsonl, state.json}    what `study.store.load` reads
<folder>/samples.parquet                                      every sample, as it was taken
<folder>/table.csv, table.md                                  the numbers, to read
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from models.denoiser import require
from study.atomic import write_file, write_json, write_text
from study.bench.config import Cell, Protocol, cell_from_tree
from study.bench.rows import MS, Line, Measured, lines_of, rows_of
from study.bench.schedule import Taken
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
    write_text(folder / "table.md", _markdown(whole.drop(columns=["cell"]).to_dict("records")))
    facts = next((each.facts for each in measured if each.facts), {})
    peaks = {f"{each.peaks.dtype}": asdict(each.peaks) for each in measured if each.peaks}
    write_json(folder / "machine.json", {"provenance": facts, "protocol": asdict(protocol), "peaks": peaks})
    return table


def state_of(lines: Sequence[Line]) -> dict[str, Any]:
    """What the store tells of a cell: one that was rejected or did not fit is not finished."""
    rejected = [line for line in lines if line.reported is None]
    failure = "; ".join(dict.fromkeys(f"{line.metric}: {line.note}" for line in rejected)) or None
    return {"status": "failed" if failure else "finished", "failure": failure, "attempts": 1}


def table_line(line: Line) -> dict[str, Any]:
    """Milliseconds, and what they mean; empty where a number is not to be believed."""
    cell, summary, ratio = line.measured.cell, line.reported, line.ratio
    return {
        "cell": cell.id,
        "subject": cell.subject.name,
        "shape": cell.subject.shape,
        "batch": cell.batch,
        "dtype": cell.dtype + (" compiled" if cell.compile else ""),
        "what": f"{line.metric} x{cell.steps}" if cell.mode == "sample" else line.metric,
        "ms": summary and summary.median * MS,
        "low": summary and summary.interval[0] * MS,
        "high": summary and summary.interval[1] * MS,
        "iqr": summary and (summary.high_quartile - summary.low_quartile) * MS,
        "p95": summary and summary.p95 * MS,
        "n": line.summary.n if line.summary else 0,
        "ratio": ratio and ratio.value,
        "ratio_low": ratio and ratio.interval[0],
        "ratio_high": ratio and ratio.interval[1],
        "cpu_ratio": line.cpu_ratio and line.cpu_ratio.value,
        "images_s": line.images_per_second,
        "mfu": line.mfu,
        "peak_mib": None if line.phase else _peak(line.measured),
        "note": line.note,
    }


def _peak(measured: Measured) -> float | None:
    memory = measured.memory
    return memory.get("allocated_peak_mib", memory.get("growth_mib"))


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


def shown(column: str, value: Any) -> str:
    if value is None or value != value or value == "":
        return ""
    if column == "mfu":
        return f"{value:.1%}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _markdown(lines: Sequence[Mapping[Any, Any]]) -> str:
    columns = filled(lines)
    rows = ["| " + " | ".join(shown(name, line[name]) for name in columns) + " |" for line in lines]
    return "\n".join(["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), *rows]) + "\n"


def filled(lines: Sequence[Mapping[Any, Any]]) -> list[str]:
    """Columns that say something of any line."""
    return [name for name in lines[0] if name != "cell" and any(shown(name, line[name]) for line in lines)]
