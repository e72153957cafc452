"""Every number the papers print that this project uses: one row each, as printed, a due correction beside it.

`published()` is one frame of two sources: the CSV files beside this module (scores, curves, settings) and
`study.cost` (parameters, MACs, images, total Gflops), which prints them wherever a cost is asked for. No number
lies in both.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pandas as pd

from study.cost.audit import AuditRow, audit
from study.cost.published import Published
from study.cost.published import published as published_costs

FOLDER = Path(__file__).parent / "published"
COLUMNS = (
    "paper",  # that prints the number
    "where",  # table or figure in it
    "model",
    "dataset",
    "resolution",  # pixels
    "setting",  # unguided | guided | cfg 1.50 | unconditional | M=2 ...
    "step",  # of training, where the paper says it
    "metric",
    "value",  # as printed; empty only where a dash is corrected
    "unit",
    "source",  # a key of sources.csv: where the number was seen
    "obtained",
    "error",  # of a digitised value, absolute
    "corrected",  # beside the value, never instead
    "note",
)
IDENTITY = ("paper", "where", "model", "dataset", "resolution", "setting", "step", "metric", "source")
NUMBERS = ("resolution", "step", "value", "error", "corrected")
NEEDED = ("paper", "where", "metric", "source", "obtained")
OBTAINED = ("verbatim", "secondary", "digitised", "derived", "recalled")
COST_WORDS = {"read": "verbatim", "second hand": "secondary"}  # study.cost's words for the same
COST_UNITS = {"params_m": "1e6 parameters", "gmacs": "GMAC/image", "images_m": "1e6 images", "total_gflops": "GMAC"}
Record = dict[str, str]


def published(paper: str | None = None) -> pd.DataFrame:
    """All rows, or one paper's; `printed` keeps the paper's own digits, `best` is the correction where there is one."""
    frame = _frame()
    return (frame if paper is None else frame[frame["paper"] == paper]).copy()


def sources() -> pd.DataFrame:
    return pd.read_csv(FOLDER / "sources.csv", keep_default_na=False)


@cache
def _frame() -> pd.DataFrame:
    keys = set(sources()["source"])
    records = [record for path in score_files() for record in read_file(path, keys)]
    return frame_of([*records, *_cost_records()])


def score_files() -> list[Path]:
    return sorted(path for path in FOLDER.glob("*.csv") if path.name != "sources.csv")


def read_file(path: Path, keys: set[str]) -> Iterator[Record]:
    """The file's rows, each checked; a bad one is refused by its line."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path}: columns {reader.fieldnames} must be {list(COLUMNS)}")
        for record in reader:
            fault = fault_of(record, keys)
            if fault:
                raise ValueError(f"{path}:{reader.line_num}: {fault}")
            yield record


def fault_of(record: Mapping[str, str | None], keys: set[str]) -> str | None:
    """What is wrong with a row, in one line; None if nothing is."""
    texts = {name: value for name, value in record.items() if isinstance(value, str)}
    if set(texts) != set(COLUMNS):
        return f"{len(texts)} fields, must be {len(COLUMNS)}"
    empty = next((name for name in NEEDED if not texts[name]), None)
    wrong = next((name for name in NUMBERS if texts[name] and not _is_number(texts[name])), None)
    if empty:
        return f"{empty} is empty"
    if wrong:
        return f"{wrong}={texts[wrong]!r} is not a number"
    if texts["obtained"] not in OBTAINED:
        return f"obtained={texts['obtained']!r} must be one of {', '.join(OBTAINED)}"
    if texts["source"] not in keys:
        return f"source={texts['source']!r} is not in sources.csv: {', '.join(sorted(keys))}"
    if (texts["obtained"] == "digitised") != bool(texts["error"]):
        return f"error={texts['error']!r}: a digitised value has one, no other does"
    if texts["corrected"] and not texts["note"]:
        return "a corrected value needs a note that says why"
    return None if texts["value"] or texts["corrected"] else "value is empty and nothing is corrected"


def frame_of(records: list[Record]) -> pd.DataFrame:
    """Typed columns; two rows for the same number are refused."""
    frame = pd.DataFrame(records, columns=list(COLUMNS)).assign(printed=lambda f: f["value"])
    twice = frame[frame.duplicated(subset=list(IDENTITY))]
    if len(twice):
        raise ValueError(f"the same published number twice: {twice.iloc[0][list(IDENTITY)].to_dict()}")
    for name in NUMBERS:
        frame[name] = pd.to_numeric(frame[name].replace("", None))
    frame = frame.astype({"resolution": "Int64", "step": "Int64", "error": float, "corrected": float})
    return frame.assign(best=frame["corrected"].fillna(frame["value"]))


def _cost_records() -> Iterator[Record]:
    audited = {id(row.printed): row for row in audit()}
    for row in published_costs():
        for metric, unit in COST_UNITS.items():
            value = getattr(row, metric)
            own = row.kind == "model" or metric in ("images_m", "total_gflops")
            if value is not None and own:
                yield _cost_record(row, metric, value, unit, audited.get(id(row)))


def _cost_record(row: Published, metric: str, value: float, unit: str, audited: AuditRow | None) -> Record:
    params = metric == "params_m"
    source, obtained = (row.params_source, row.params_obtained) if params else ("", "")
    paper, _, where = (source or row.source).partition(" ")
    obtained = obtained or row.obtained
    judged = audited if metric == "total_gflops" else None
    off = judged is not None and judged.verdict != "consistent" and not row.backbone.startswith("diffussm")
    return {
        **dict.fromkeys(COLUMNS, ""),
        "paper": paper.rstrip(",;"),
        "where": where or "comparison table",
        "model": row.method,
        "dataset": "imagenet",
        "resolution": str(row.resolution),
        "setting": _setting(row) if row.kind == "run" else "",
        "metric": metric,
        "value": f"{value:.6g}",
        "unit": unit,
        "source": "cost",
        "obtained": COST_WORDS.get(obtained, obtained),
        "corrected": f"{judged.recomputed:.3g}" if judged is not None and off else "",
        "note": f"total {', '.join(filter(None, (judged.verdict, judged.why)))}" if judged else row.note,
    }


def _setting(row: Published) -> str:
    return "guided" if "-G" in row.method else "unguided"


def _is_number(text: str) -> bool:
    try:
        return float(text) == float(text)
    except ValueError:
        return False
