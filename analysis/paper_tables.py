"""Tables of the papers: what is printed, the audited value below it, and our rows where any can stand beside them.

What is missing is said in a note; what cannot be compared, in the verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.comparable import SCORES, PrintedLine, against, printed_lines, read_config
from analysis.cost_tables import costs
from analysis.published import OBTAINED, published
from analysis.render import table
from analysis.rows import Rows
from study.comparison import Cell, Estimate, Metric, mean_of

FORMS = {**dict.fromkeys(SCORES, ".2f"), "images, M": ".0f", "total GMAC": ".2e", "step": ",d", "px": "d"}
CORRECTED = "corrected"
WIDE = 0.1  # of the printed value: an interval that reaches further holds too much to be a match


def imagenet(resolution: int, rows: Rows | None = None) -> pd.DataFrame:
    """The main table of DiffuSSM at 256 or 512 pixels, audited, with DiS and our runs beside it."""
    frame = published("DiffuSSM")
    main = frame[(frame["where"] == "main table") & (frame["resolution"] == resolution)]
    lines = _printed_lines(main, {"images_m": "images, M", "total_gflops": "total GMAC"}, SCORES)
    return _paper_table(
        lines,
        f"ImageNet {resolution} × {resolution}, as DiffuSSM prints it",
        _correction_notes(main),
        _with_ours(rows, main[main["model"].str.startswith("DiffuSSM")]),
    )


def lsun(rows: Rows | None = None) -> pd.DataFrame:
    """Church and Bedroom, 256 pixels, unconditional."""
    frame = published()
    chosen = frame[frame["dataset"].isin(["lsun-church", "lsun-bedroom"]) & frame["metric"].isin(SCORES)]
    misread = chosen[chosen["source"] == "summaries"]
    chosen = chosen.drop(index=misread.index).sort_values("dataset", kind="stable", ascending=False)
    lines = _printed_lines(chosen, {}, ("fid", "precision", "recall"), by=("dataset", "model"))
    told = [
        "DiffuSSM's own LSUN table was not seen: its two values are recalled, from the gaps to LDM of 0.08 and 0.07.",
        *(f"Not used: {row.value:g} for {row.dataset}, {row.note}." for row in misread.itertuples()),
    ]
    ours = _with_ours(rows, chosen[chosen["model"] == "DiffuSSM"])
    return _paper_table(lines, "LSUN, 256 × 256, unconditional", told, ours)


def celeba_cifar(rows: Rows | None = None) -> pd.DataFrame:
    """DiS and U-ViT without classes: CIFAR-10 and CelebA."""
    frame = published()
    chosen = frame[(frame["setting"] == "unconditional") & frame["dataset"].isin(["cifar10", "celeba"])]
    chosen = chosen[(chosen["obtained"] != "derived") & chosen["metric"].isin(["fid", "params_m", "fid@10k"])]
    labels = {"params_m": "params, M", "fid@10k": "fid@10k"}
    lines = _printed_lines(chosen, labels, ("fid",), by=("dataset", "model", "where"))
    ours = _with_ours(rows, chosen[chosen["model"] == "DiS-S/2"])
    return _paper_table(lines, "CIFAR-10 and CelebA 64, unconditional", (), ours)


def dis_imagenet(rows: Rows | None = None) -> pd.DataFrame:
    """DiS on ImageNet, both resolutions."""
    frame = published("DiS")
    chosen = frame[frame["where"] == "ImageNet table"]
    lines = _printed_lines(chosen, {}, SCORES, by=("resolution", "model", "setting"))
    return _paper_table(lines, "DiS on ImageNet", (), _with_ours(rows, chosen))


def dit_models(rows: Rows | None = None) -> pd.DataFrame:
    """DiT's twelve models: cost printed and counted, size, and FID after 400k steps without guidance."""
    frame = published("DiT")
    models = frame[(frame["where"] == "table of the 12 models") & (frame["resolution"] == 256)]
    lines = _printed_lines(models, {"gmacs": "GMAC", "params_m": "params, M"}, ("fid",), by=("model",))
    counted = costs(("DiT",)).drop_duplicates("network").set_index("network")
    for column, name in (("GMAC counted", "GMAC counted"), ("GMACs", "GMAC verdict"), ("params", "params verdict")):
        lines[name] = lines["model"].map(counted[column])
    ours = _with_ours(rows, models)
    return _paper_table(lines, "DiT's twelve models, FID-50K at 400k steps, unguided", (), ours)


def digitised(where: str) -> pd.DataFrame:
    """A figure of DiffuSSM as numbers: `hourglass figure` or `model-scaling figure`, FID-50K by step."""
    frame = published("DiffuSSM")
    chosen = frame[(frame["where"] == where) & (frame["obtained"] == "digitised")]
    if chosen.empty:
        known = ", ".join(sorted(frame.loc[frame["obtained"] == "digitised", "where"].unique()))
        return table(pd.DataFrame(), where, [f"No such figure was digitised: there are {known}."])
    steps = sorted(chosen["step"].unique())
    columns: dict[str, Any] = {"step": steps}
    for (model, setting), group in chosen.groupby(["model", "setting"], sort=False):
        own = group.set_index("step").loc[steps]
        name = f"{model} {setting}".strip()
        columns[name], columns[f"{name} ±"] = own["value"].to_numpy(), own["error"].to_numpy()
    told = ["Read off the picture, within about 1 %: the ± is of the reading, not of training."]
    return table(
        pd.DataFrame(columns), f"DiffuSSM's {where}: FID-50K, unguided", [*told, *_notes_of(chosen)], formats=FORMS
    )


def _printed_lines(
    frame: pd.DataFrame, labels: Mapping[str, str], scores: Sequence[str], by: Sequence[str] = ("setting", "model")
) -> pd.DataFrame:
    """One line per printed one, and below it the corrected one where there is any correction."""
    lines = []
    for _, group in frame.groupby(list(by), sort=False, dropna=False):
        facts = {("px" if key == "resolution" else key): group[key].iloc[0] for key in by}
        names = {**dict.fromkeys(scores, ""), **labels}
        names = {name: label or name for name, label in names.items()}
        values = group.drop_duplicates("metric").set_index("metric")
        known = [name for name in names if name in values.index]
        if not known:
            continue
        shown = {names[name]: values.at[name, "value"] for name in known}
        lines.append({**facts, **shown, "seen": _seen(group)})
        if group["corrected"].notna().any():
            best = {names[name]: values.at[name, "best"] for name in known}
            lines.append({**facts, "model": f"{facts['model']}, {CORRECTED}", **best, "seen": "audit"})
    order = [("px" if key == "resolution" else key) for key in by] + [*labels.values(), *scores, "seen"]
    built = pd.DataFrame(lines)
    return built.reindex(columns=order).infer_objects()


def _seen(group: pd.DataFrame) -> str:
    """How the line's numbers were obtained; where ways differ, which came in the weaker ones."""
    ways = {str(way): own["metric"].tolist() for way, own in group.groupby("obtained", sort=False)}
    first, *weaker = sorted(ways, key=OBTAINED.index)
    return "; ".join([first, *(f"{way}: {', '.join(ways[way])}" for way in weaker)])


def _correction_notes(frame: pd.DataFrame) -> list[str]:
    """Why a line is corrected, and what else is known against a printed one."""
    told = []
    for model, own in frame.groupby("model", sort=False):
        corrected = own["corrected"].notna()
        why = _reasons(own.loc[corrected, "note"])
        others = _reasons(note for note in own.loc[~corrected, "note"] if note not in why)
        told += [f"{model}, corrected below the printed line: {why}."] if why else []
        told += [f"{model}, as printed: {others}."] if others else []
    return told


def _reasons(notes: Iterable[str]) -> str:
    plain = (note.removesuffix("; printed as a dash").removeprefix("total consistent").lstrip(", ") for note in notes)
    return "; ".join(dict.fromkeys(filter(None, plain)))


def _notes_of(frame: pd.DataFrame) -> list[str]:
    return [f"{note[0].upper()}{note[1:]}." for note in dict.fromkeys(frame["note"]) if note]


def _paper_table(
    lines: pd.DataFrame, heading: str, told: Sequence[str], ours: tuple[pd.DataFrame, list[str]]
) -> pd.DataFrame:
    added, remarks = ours
    whole = pd.concat([lines, added], ignore_index=True) if len(added) else lines
    return table(whole, heading, [*told, *remarks], formats=FORMS)


def _with_ours(rows: Rows | None, printed: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Our cells that were scored like the papers', each with a verdict, or a sentence that says there are none."""
    if rows is None:
        return pd.DataFrame(), ["No run of ours is shown here."]
    if rows.tidy.empty:
        return pd.DataFrame(), [*rows.remarks, "The published part is shown; ours is missing."]
    scored = [m for m in rows.study.metrics if m.name.partition("@")[0] in SCORES and "." not in m.name]
    if not scored:
        spaces = ", ".join(rows.quality()) or "no quality"
        return pd.DataFrame(), [
            f"No run of {rows.name} was scored in Inception features (it measures {spaces}): not comparable."
        ]
    lines = printed_lines(printed)
    return pd.DataFrame([line for cell in rows.study.cells if (line := _our_line(rows, cell, scored, lines))]), []


def _our_line(rows: Rows, cell: Cell, metrics: Sequence[Metric], lines: Sequence[PrintedLine]) -> dict[str, object]:
    """One of our cells: its scores, and what they amount to against the printed line that it is nearest to."""
    found: dict[str, object] = {}
    verdicts = []
    headlines: dict[str, None] = {}
    config = _config(rows, cell)
    for metric in sorted(metrics, key=lambda m: not m.name.endswith("@50k")):
        name, _, count = metric.name.partition("@")
        estimate = mean_of(cell, metric)
        if estimate is None or name in found:
            continue
        found |= {name: estimate.mean, f"{name} ±": estimate.reach}
        line, reason = against(lines, count, _reference(rows, cell, metric), config)
        if name in line.values:
            headlines[line.headline] = None
            verdicts.append(f"{name} {verdict(estimate, line.values[name], reason)}")
    if not found:
        return {}
    judged = {"seen": "measured", "against": "; ".join(headlines), "verdict": "; ".join(verdicts)}
    return {"model": f"ours: {cell.label}", **found, **judged}


def _reference(rows: Rows, cell: Cell, metric: Metric) -> str:
    """What this cell's images were compared with in this metric."""
    column = rows.tidy.get("provenance.reference")
    if column is None:
        return ""
    own = (rows.tidy["metric"] == metric.name) & (rows.tidy["protocol"] == metric.protocol)
    own &= rows.tidy["run"].astype(str).isin(list(cell.runs.values()))
    return ", ".join(map(str, column[own].dropna().unique()))


def _config(rows: Rows, cell: Cell) -> Mapping[str, Any]:
    """The config of the cell's first run: the others differ in their seeds alone."""
    file = rows.directory(next(iter(cell.runs.values()))).config
    return read_config(file.read_text(encoding="utf-8")) if file.exists() else {}


def verdict(ours: Estimate, printed: float, reason: str = "") -> str:
    """match | off by x (y %) | not comparable: why."""
    if reason:
        return f"not comparable: {reason}"
    off = ours.mean - printed
    if ours.reach is None:
        return f"off by {off:+.3g} ({off / printed:+.1%}), one seed"
    if abs(off) > ours.reach:
        return f"off by {off:+.3g} ({off / printed:+.1%})"
    wide = ours.reach > WIDE * abs(printed)
    return f"not comparable: ±{ours.reach:.3g} is too wide to tell" if wide else "match"
