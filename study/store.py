"""The result store as data frames. The runs' own files are the truth; an index in parquet saves reading them again.

load("results/ablate_M")   one line per run and metric, with the config keys that differ
wide(load(...))            one line per run, one column per metric
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from study.atomic import canonical_json, write_file
from study.plan_file import read_runs
from study.results import Row, read_rows
from study.strict import ConfigError, convert
from study.strict_json import parse_json

SCHEMA = 1  # raise when the index holds other columns: older ones are then rebuilt
ROW_COLUMNS = ("run", "metric", "value", "low", "high", "n", "units", "protocol", "provenance", "stamp")
RUN_COLUMNS = ("run", "stamp", "rows", "status", "failure", "attempts")
UNREADABLE = {"status": "damaged", "attempts": 0}
SOURCES = ("rows.jsonl", "state.json", "config.yaml")


@dataclass(frozen=True)
class Frames:
    """All of a store: `rows` by run and metric, `runs` with each config key as a column of JSON text."""

    rows: pd.DataFrame
    runs: pd.DataFrame


def load(path: str | Path, identities: Sequence[str] | None = None) -> pd.DataFrame:
    """Every row of a store, or of one sweep in it, with the config keys that differ between its runs as columns.

    `identities` are the sweep's runs, for who does not want to rely on what `plan.json` says at this moment.
    """
    frames, wanted = _frames(path, identities)
    rows = _in_order(frames.rows, wanted).drop(columns=["stamp"])
    runs = _runs(frames, wanted)
    joined = rows.merge(runs.drop(columns=["attempts"]), on="run", how="left")
    return _with_provenance(joined).reset_index(drop=True)


def runs(path: str | Path, identities: Sequence[str] | None = None) -> pd.DataFrame:
    """One line per run, finished or not: its status, its failure, and the config keys that differ."""
    frames, wanted = _frames(path, identities)
    found = _runs(frames, wanted)
    known = set(found["run"])
    absent = pd.DataFrame({"run": [run for run in wanted if run not in known], "status": "pending"})
    return pd.concat([found, absent], ignore_index=True) if len(absent) else found


def wide(frame: pd.DataFrame) -> pd.DataFrame:
    """One line per run, one column per metric; a metric under several protocols has a column for each."""
    protocols = frame.groupby("metric", observed=True)["protocol"].nunique()
    several = set(protocols.index[protocols > 1])
    names = frame["metric"].astype(str)
    full = names + " @ " + frame["protocol"].astype(str)
    columns = full.where(names.isin(several), names)
    values = frame.assign(column=columns).pivot(index="run", columns="column", values="value")
    facts = (
        frame.drop(columns=["metric", "value", "low", "high", "n", "units", "protocol"])
        .drop_duplicates("run")
        .set_index("run")
    )
    return facts.join(values).reset_index()


def index(results: Path) -> Frames:
    """The index of a store, brought up to date with the files."""
    folder = results / ".index"
    stamps = _stamps(results / "runs")
    known = _read(folder)
    current = dict(zip(known.runs["run"], known.runs["stamp"], strict=True)) if known else {}
    changed = [run for run, stamp in stamps.items() if current.get(run) != stamp]
    if known and not changed and len(current) == len(stamps):
        return known
    fresh = _collect(results, {run: stamps[run] for run in changed})
    merged = _merge(known, fresh, {run for run in stamps if run not in set(changed)})
    _write(folder, merged)
    return merged


def sweep_runs(folder: Path) -> list[str]:
    """The runs that a sweep means, in its order."""
    return list(read_runs(folder))


def _frames(path: str | Path, identities: Sequence[str] | None = None) -> tuple[Frames, list[str]]:
    """The whole index, and which of its runs `path` means."""
    folder = Path(path)
    if identities is not None:
        return index(folder.parent), list(identities)
    if (folder / "plan.json").exists():
        return index(folder.parent), sweep_runs(folder)
    if not (folder / "runs").is_dir():
        raise ConfigError(f"{folder} holds no results: neither plan.json (a sweep) nor runs/ (a store) is there")
    frames = index(folder)
    return frames, sorted(frames.runs["run"])


def _in_order(frame: pd.DataFrame, wanted: list[str]) -> pd.DataFrame:
    """The lines of the wanted runs, run by run in that order."""
    place = frame["run"].map({run: index for index, run in enumerate(wanted)}).astype(float)
    return frame[place.notna()].iloc[place.dropna().argsort(kind="stable")]


def _runs(frames: Frames, wanted: list[str]) -> pd.DataFrame:
    chosen = _in_order(frames.runs, wanted).drop(columns=["stamp", "rows"])
    facts = [name for name in RUN_COLUMNS if name in chosen]
    config = chosen.drop(columns=facts)
    config = config[[key for key in config if config[key].nunique(dropna=False) > 1]]
    decoded = {key: config[key].astype(object).map(_decoded(config[key])) for key in config}
    plain = chosen[facts].astype(dict.fromkeys(("run", "status", "failure"), object))
    plain["failure"] = plain["failure"].where(plain["failure"].notna(), None)
    return pd.concat([plain, pd.DataFrame(decoded, index=chosen.index)], axis=1)


def _decoded(column: pd.Series[Any]) -> dict[str, Any]:
    """JSON text to values, each distinct one once; lists stay text, for a frame cannot group by them."""
    values = {text: json.loads(text) for text in column.dropna().unique()}
    return {text: text if isinstance(value, list) else value for text, value in values.items()}


def _with_provenance(frame: pd.DataFrame) -> pd.DataFrame:
    texts = frame["provenance"].dropna().unique()
    facts = {text: json.loads(text) for text in texts}
    keys = sorted({key for fact in facts.values() for key in fact})
    columns = {f"provenance.{key}": frame["provenance"].map({t: f.get(key) for t, f in facts.items()}) for key in keys}
    return pd.concat([frame.drop(columns=["provenance"]), pd.DataFrame(columns, index=frame.index)], axis=1)


def _stamps(folder: Path) -> dict[str, str]:
    """What each run's files looked like; a file that is replaced looks different."""
    if not folder.is_dir():
        return {}
    entries = (entry for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    return {entry.name: _stamp(entry.path) for entry in entries}


def _stamp(folder: str) -> str:
    marks = []
    for name in SOURCES:
        try:
            found = os.stat(f"{folder}/{name}")
            marks.append(f"{found.st_mtime_ns:x}.{found.st_size:x}.{found.st_ino:x}")
        except OSError:
            marks.append("")
    return "/".join(marks)


def _collect(results: Path, stamps: Mapping[str, str]) -> Frames:
    rows: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for run, stamp in stamps.items():
        folder = results / "runs" / run
        try:
            own = [{**_row_record(row), "stamp": stamp} for row in read_rows(folder / "rows.jsonl")]
            facts = {**_state(folder), **_config(folder)}
        except (ValueError, OSError, yaml.YAMLError) as error:  # one damaged run hides no other
            own, facts = [], {**UNREADABLE, "failure": f"cannot be read: {' '.join(str(error).split())}"}
        rows += own
        found.append({"run": run, "stamp": stamp, "rows": len(own), **facts})
    return Frames(pd.DataFrame(rows, columns=list(ROW_COLUMNS)), pd.DataFrame(found, columns=_columns(found)))


def _columns(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The fixed columns, then every config key in the order met."""
    keys = dict.fromkeys(key for record in records for key in record)
    return [*RUN_COLUMNS, *(key for key in keys if key not in RUN_COLUMNS)]


def _row_record(row: Row) -> dict[str, Any]:
    low, high = row.interval or (None, None)
    return {
        "run": row.run,
        "metric": row.metric,
        "value": row.value,
        "low": low,
        "high": high,
        "n": row.n,
        "units": row.units,
        "protocol": row.protocol,
        "provenance": canonical_json(dict(row.provenance)),
    }


def _state(folder: Path) -> dict[str, Any]:
    try:
        state = parse_json((folder / "state.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        state = {}
    if not isinstance(state, dict):
        raise ValueError("state.json is not a run state")
    return {
        "status": convert(str, state.get("status", "pending"), "state.status"),
        "failure": convert(str | None, state.get("failure"), "state.failure"),
        "attempts": convert(int, state.get("attempts", 0), "state.attempts"),
    }


def _config(folder: Path) -> dict[str, str]:
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    tree = yaml.load(text, Loader=yaml.CSafeLoader)
    if not isinstance(tree, dict):
        raise ValueError("config.yaml is not a run config")
    try:
        return {key: canonical_json(value) for key, value in _leaves(tree)}
    except TypeError as error:  # dates, and what else YAML knows and a config does not
        raise ValueError(f"config.yaml is not a run config: {error}") from error


def _leaves(tree: Mapping[str, Any], where: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def _merge(known: Frames | None, fresh: Frames, unchanged: set[str]) -> Frames:
    if known is None:
        return _compact(fresh)
    kept = Frames(
        known.rows[known.rows["run"].isin(unchanged)].astype(object),
        known.runs[known.runs["run"].isin(unchanged)].astype(object),
    )
    parts = [part for part in (kept, fresh) if len(part.runs)]
    return _compact(Frames(_stack(part.rows for part in parts), _stack(part.runs for part in parts)))


def _stack(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(list(parts), ignore_index=True)


def _compact(frames: Frames) -> Frames:
    """Texts as categories: they repeat in every row."""
    rows = frames.rows.astype({"value": float, "low": float, "high": float, "n": "int64"})
    texts = {name: "category" for name in rows if name not in ("value", "low", "high", "n")}
    keys = {name: "category" for name in frames.runs if name not in ("run", "stamp", "rows", "attempts")}
    return Frames(
        rows.astype(texts), frames.runs.astype({"run": str, "stamp": str, "rows": "int64", "attempts": "int64", **keys})
    )


def _read(folder: Path) -> Frames | None:
    """None if there is no index, or none that can be trusted: it is rebuilt then."""
    try:
        rows = pd.read_parquet(folder / f"rows-{SCHEMA}.parquet")
        found = pd.read_parquet(folder / f"runs-{SCHEMA}.parquet")
    except Exception:  # whatever a damaged file makes the reader say
        return None
    whole = set(ROW_COLUMNS) <= set(rows) and set(RUN_COLUMNS) <= set(found)
    return Frames(rows, found) if whole and _belong_together(rows, found) else None


def _belong_together(rows: pd.DataFrame, found: pd.DataFrame) -> bool:
    """Whether both files are of one writing: two processes may have brought the index up to date at once."""
    counted = rows.groupby(["run", "stamp"], observed=True).size()
    expected = found[found["rows"] > 0].set_index(["run", "stamp"])["rows"]
    return dict(counted) == dict(expected)


def _write(folder: Path, frames: Frames) -> None:
    """A store that cannot be written to is read without an index."""
    try:
        folder.mkdir(exist_ok=True)
        write_file(folder / f"rows-{SCHEMA}.parquet", lambda path: frames.rows.to_parquet(path, index=False))
        write_file(folder / f"runs-{SCHEMA}.parquet", lambda path: frames.runs.to_parquet(path, index=False))
    except OSError:
        return
