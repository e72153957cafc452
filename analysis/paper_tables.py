"""Tables of the papers: what is printed, the audited value below it, and our rows where any can stand beside them.

What is missing is said in a note; what cannot be compared, in the verdict.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.cost_tables import costs
from analysis.published import OBTAINED, published
from analysis.render import table
from analysis.rows import Rows
from study.comparison import Cell, Estimate, Metric, mean_of

SCORES = ("fid", "sfid", "is", "precision", "recall")
FORMS = {**dict.fromkeys(SCORES, ".2f"), "images, M": ".0f", "total GMAC": ".2e", "step": ",d", "px": "d"}
CORRECTED = "corrected"


def imagenet(resolution: int, rows: Rows | None = None) -> pd.DataFrame:
    """The main table of DiffuSSM at 256 or 512 pixels, audited, with DiS and our runs beside it."""
    frame = published("DiffuSSM")
    main = frame[(frame["where"] == "main table") & (frame["resolution"] == resolution)]
    lines = _printed_lines(main, {"images_m": "images, M", "total_gflops": "total GMAC"}, SCORES)
    return _paper_table(
        lines,
        f"ImageNet {resolution} × {resolution}, as DiffuSSM prints it",
        _correction_notes(main),
        _with_ours(rows, main[main["model"].str.startswith("DiffuSSM")], f"imagenet{resolution}"),
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
    ours = _with_ours(rows, chosen[chosen["model"] == "DiffuSSM"], "lsun")
    return _paper_table(lines, "LSUN, 256 × 256, unconditional", told, ours)


def celeba_cifar(rows: Rows | None = None) -> pd.DataFrame:
    """DiS and U-ViT without classes: CIFAR-10 and CelebA."""
    frame = published()
    chosen = frame[(frame["setting"] == "unconditional") & frame["dataset"].isin(["cifar10", "celeba"])]
    chosen = chosen[(chosen["obtained"] != "derived") & chosen["metric"].isin(["fid", "params_m", "fid@10k"])]
    labels = {"params_m": "params, M", "fid@10k": "fid@10k"}
    lines = _printed_lines(chosen, labels, ("fid",), by=("dataset", "model", "where"))
    ours = _with_ours(rows, chosen[chosen["model"] == "DiS-S/2"], "cifar10")
    return _paper_table(lines, "CIFAR-10 and CelebA 64, unconditional", (), ours)


def dis_imagenet(rows: Rows | None = None) -> pd.DataFrame:
    """DiS on ImageNet, both resolutions."""
    frame = published("DiS")
    chosen = frame[frame["where"] == "ImageNet table"]
    lines = _printed_lines(chosen, {}, SCORES, by=("resolution", "model", "setting"))
    return _paper_table(lines, "DiS on ImageNet", (), _with_ours(rows, chosen, "imagenet"))


def dit_models(rows: Rows | None = None) -> pd.DataFrame:
    """DiT's twelve models: cost printed and counted, size, and FID after 400k steps without guidance."""
    frame = published("DiT")
    models = frame[(frame["where"] == "table of the 12 models") & (frame["resolution"] == 256)]
    lines = _printed_lines(models, {"gmacs": "GMAC", "params_m": "params, M"}, ("fid",), by=("model",))
    counted = costs(("DiT",)).drop_duplicates("network").set_index("network")
    for column, name in (("GMAC counted", "GMAC counted"), ("GMACs", "GMAC verdict"), ("params", "params verdict")):
        lines[name] = lines["model"].map(counted[column])
    ours = _with_ours(rows, models[models["model"] == "DiT-XL/2"], "imagenet256")
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
    found = frame[frame["corrected"].notna()].groupby("model", sort=False)
    return [f"{model}, corrected below the printed line: {_reasons(own)}." for model, own in found]


def _reasons(own: pd.DataFrame) -> str:
    return "; ".join(dict.fromkeys(note.removesuffix("; printed as a dash") for note in own["note"]))


def _notes_of(frame: pd.DataFrame) -> list[str]:
    return [f"{note[0].upper()}{note[1:]}." for note in dict.fromkeys(frame["note"]) if note]


def _paper_table(
    lines: pd.DataFrame, heading: str, told: Sequence[str], ours: tuple[pd.DataFrame, list[str]]
) -> pd.DataFrame:
    added, remarks = ours
    whole = pd.concat([lines, added], ignore_index=True) if len(added) else lines
    return table(whole, heading, [*told, *remarks], formats=FORMS)


def _with_ours(rows: Rows | None, printed: pd.DataFrame, data: str) -> tuple[pd.DataFrame, list[str]]:
    """Our cells that were scored like the papers', each with a verdict, or a sentence that says there are none."""
    if rows is None:
        return pd.DataFrame(), ["No run of ours is shown here."]
    if rows.tidy.empty:
        return pd.DataFrame(), [*rows.remarks, "The published part is shown; ours is missing."]
    scored = [m for m in rows.study.metrics if m.name.split("@")[0] in SCORES]
    if not scored:
        spaces = ", ".join(rows.quality()) or "no quality"
        return pd.DataFrame(), [
            f"No run of {rows.name} was scored in Inception features (it measures {spaces}): not comparable."
        ]
    reference = _references(rows)
    lines = [line for cell in rows.study.cells if (line := _our_line(cell, scored, printed, data, reference))]
    return pd.DataFrame(lines), []


def _our_line(
    cell: Cell, metrics: Sequence[Metric], printed: pd.DataFrame, data: str, reference: str
) -> dict[str, object]:
    """One of our cells: its scores, and what they amount to against the first of the printed lines."""
    found: dict[str, object] = {}
    verdicts = []
    for metric in metrics:
        name, _, count = metric.name.partition("@")
        estimate = mean_of(cell, metric)
        if estimate is None or name in found:
            continue
        found |= {name: estimate.mean, f"{name} ±": estimate.reach}
        against = printed.loc[printed["metric"] == name, "best"]
        if len(against):
            verdicts.append(f"{name} {verdict(estimate, float(against.iloc[0]), incomparable(count, data, reference))}")
    if not found:
        return {}
    headline = " ".join(filter(None, (str(printed["model"].iloc[0]), str(printed["setting"].iloc[0]))))
    judged = {"seen": "measured", "against": headline, "verdict": "; ".join(verdicts)}
    return {"model": f"ours: {cell.label}", **found, **judged}


def incomparable(count: str, data: str, reference: str) -> str:
    """Why a score of ours cannot stand beside a printed one; empty if it can."""
    if count.lower() != "50k":
        return f"scored on {count or 'unknown'} images, not 50k"
    return "" if data in re.sub(r"[^a-z0-9]", "", reference.lower()) else f"its reference is {reference or 'unknown'}"


def verdict(ours: Estimate, printed: float, reason: str = "") -> str:
    """match | off by x (y %) | not comparable because ..."""
    if reason:
        return f"not comparable: {reason}"
    off = ours.mean - printed
    if ours.reach is None:
        return f"off by {off:+.3g} ({off / printed:+.1%}), one seed"
    return "match" if abs(off) <= ours.reach else f"off by {off:+.3g} ({off / printed:+.1%})"


def _references(rows: Rows) -> str:
    column = rows.tidy.get("provenance.reference")
    return "" if column is None else ", ".join(map(str, column.dropna().unique()))
