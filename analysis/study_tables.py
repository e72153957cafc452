"""Tables of a study: its points over seeds, against the baseline, at equal steps, compute or cost.

A mean is bold only where it is told from every other; a point without a result says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.compute import at_equal_compute, at_equal_time
from analysis.published import published
from analysis.render import table
from analysis.rows import FINISHED, CannotShowError, Rows
from analysis.trials import outside
from study import caveats
from study.comparison import Cell, Estimate, Metric, Study, differences, mean_of, read_plan, spread
from study.results import is_higher_better
from study.stats import holm, minimum_detectable_difference, pareto_front, t_quantile, two_sided_p

ALPHA = 0.05
COSTS = {"params": "params", "gmacs": "GMAC", "train_pflops": "PFLOP", "images_per_second": "images/s"}
REAL = ".real"  # what real images score: the floor, the same for every point
OUTSIDE = "outside the constraints"
LEAST = 3  # degrees of freedom below which a spread is little known


def comparison(rows: Rows, metrics: Sequence[str] = (), heading: str = "", told: Sequence[str] = ()) -> pd.DataFrame:
    """Per metric and cell: runs, mean, difference to the baseline, p after Holm, and a verdict in words."""
    found, refused = _chosen(rows, metrics or _default(rows))
    return compared(rows, found, heading or rows.name, [*told, *refused])


def equal_compute(rows: Rows, metric: str = "val_loss") -> pd.DataFrame:
    """The same comparison once every run had spent the same training compute."""
    heading = f"{rows.name}: {metric} at equal training compute"
    try:
        found = at_equal_compute(rows, metric)
    except CannotShowError as error:
        return table(pd.DataFrame(), heading, _once([*rows.remarks, str(error)]))
    return compared(rows, [found], heading, ["Read from the training curves, between their points."])


def equal_time(rows: Rows, seconds: Mapping[str, float], metric: str = "val_loss") -> pd.DataFrame:
    """The same once every run had trained for the same time, from seconds per image of each point as benchmarked."""
    heading = f"{rows.name}: {metric} at equal training time"
    try:
        found = at_equal_time(rows, metric, seconds)
    except CannotShowError as error:
        return table(pd.DataFrame(), heading, _once([*rows.remarks, str(error)]))
    rates = ", ".join(f"{label} {1 / each:.0f}" for label, each in seconds.items())
    return compared(rows, [found], heading, [f"Images/s as benchmarked alone: {rates}. Read from the training curves."])


def against(rows: Rows, partner: Mapping[str, str]) -> Rows:
    """The same rows with only these points compared, each with the one that is named, which is compared with none."""
    labels = {cell.label for cell in rows.study.cells}
    if not labels:
        return rows
    unknown = {*partner, *partner.values()} - labels
    if unknown:
        raise CannotShowError(f"{rows.name} has no point {min(unknown)}: there are {', '.join(sorted(labels))}.")
    both = partner.keys() & set(partner.values())
    if both:
        raise CannotShowError(f"{min(both)} is compared and compared with: make two tables of it.")
    known = {**partner, **{base: base for base in partner.values()}}
    return replace(rows, study=replace(rows.study, partner=known))


def spent(rows: Rows) -> pd.DataFrame:
    """Per cell what it is and what it took, in means over its runs; a failed one with its reason."""
    found, refused = _chosen(rows, tuple(name for name in COSTS if any(m.name == name for m in rows.study.metrics)))
    lines, missing = [], _missing(rows)
    for cell in rows.study.cells:
        means = {COSTS[metric.name]: mean_of(cell, metric) for metric in found}
        lines.append({"point": cell.label, **{k: m.mean if m else math.nan for k, m in means.items()}})
        lines[-1] |= {"missing": missing.get(cell.label, "")} if missing else {}
    speed = [_WALL_CLOCK] if any(m.name == "images_per_second" for m in found) else []
    told = _once([*rows.remarks, *refused, *speed])
    return table(
        pd.DataFrame(lines), f"{rows.name}: what the points cost", told, formats={"params": ",.0f", "images/s": ".0f"}
    )


_WALL_CLOCK = "images/s: by wall clock of the training steps, whatever else the machine did."


def pareto(rows: Rows, metric: str = "val_loss", cost: str = "gmacs") -> pd.DataFrame:
    """Which points nothing cheaper beats, noise allowed for."""
    found, refused = _chosen(rows, (metric, cost))
    heading = f"{rows.name}: {metric} against {cost}"
    if len(found) < 2:
        return table(pd.DataFrame(), heading, _once([*rows.remarks, *refused]))
    known = [(cell, mean_of(cell, found[0]), mean_of(cell, found[1])) for cell in rows.study.cells]
    both = [(cell.label, loss, paid) for cell, loss, paid in known if loss is not None and paid is not None]
    sign = -1 if is_higher_better(metric) else 1
    deviation, freedom = spread(rows.study.cells, found[0])
    shared = [t_quantile(freedom) * deviation / math.sqrt(loss.n) if freedom else math.nan for _, loss, _ in both]
    front = pareto_front([paid.mean for *_, paid in both], [sign * loss.mean for _, loss, _ in both], shared)
    columns = {
        "point": [label for label, *_ in both],
        cost: [paid.mean for *_, paid in both],
        metric: [loss.mean for _, loss, _ in both],
        f"{metric} ±": [_reach(loss) for _, loss, _ in both],
        "front": front.words() if freedom else _by_mean(front.by_mean),
    }
    return table(pd.DataFrame(columns).sort_values(cost, kind="stable"), heading, _once([*rows.remarks, *refused]))


def _by_mean(on_front: Iterable[bool]) -> list[str]:
    return ["on the front" if on else "beaten, by how much noise is unknown" for on in on_front]


def curve(rows: Rows, metric: str = "val_loss") -> pd.DataFrame:
    """A logged metric by images seen: mean over the seeds of a cell, with its interval."""
    logged = rows.curves[rows.curves["metric"] == metric]
    if logged.empty:
        return table(pd.DataFrame(), f"{metric} while training", [*rows.remarks, f"No run logged {metric}."])
    grouped = logged.groupby(["cell", "images"], sort=False)["value"].agg(["mean", "std", "count"]).reset_index()
    quantiles = {n: t_quantile(n - 1) if n > 1 else math.nan for n in grouped["count"].unique()}
    grouped[f"{metric} ±"] = grouped["count"].map(quantiles) * grouped["std"] / grouped["count"] ** 0.5
    frame = grouped.rename(columns={"cell": "point", "mean": metric, "count": "runs"}).drop(columns="std")
    return table(frame, f"{metric} while training", rows.remarks, formats={"images": ",d"})


def patch_size(rows: Rows) -> pd.DataFrame:
    return comparison(rows, heading="Patch size, at equal steps")


def hourglass(rows: Rows) -> pd.DataFrame:
    return comparison(rows, heading="Hourglass ratio, at equal steps", told=_EQUAL_STEPS)


def hourglass_readings(rows: Rows) -> pd.DataFrame:
    return comparison(rows, heading="Three readings of the hourglass")


def depth_width(rows: Rows) -> pd.DataFrame:
    return comparison(rows, heading="Depth and width")


def backbones(rows: Rows) -> pd.DataFrame:
    return comparison(rows, heading="Backbones at equal MACs", told=(_settings(rows),))


def _settings(rows: Rows) -> str:
    """Whether every backbone was given values of its own."""
    tuned = read_plan(rows.path).get("settings") if (rows.path / "plan.json").exists() else None
    return f"Settings: {tuned}." if tuned else "One learning rate for all: none was tuned."


def resolution(rows: Rows) -> pd.DataFrame:
    return comparison(rows, heading="Resolution")


def convergence(rows: Rows) -> pd.DataFrame:
    return comparison(rows, heading="Size of the training set, at equal steps")


def dis_ablations(rows: Rows) -> pd.DataFrame:
    """The paper's panels were not seen as numbers, but for one report of a user's."""
    frame = published("DiS")
    report = frame[frame["where"] == "reproduction report"].iloc[0]
    told = f"Published: curve values not seen; a user reports FID-10K {report['value']} at {report['step']:,} steps."
    return comparison(rows, heading=f"DiS ablation: {rows.name}", told=(told,))


def search(rows: Rows, metric: str = "") -> pd.DataFrame:
    """The points of a search, best first, for one objective; those that break a constraint last."""
    names = (metric,) if metric else tuple(rows.quality()[:1])
    frame = comparison(rows, names, heading="Search, best first") if names else comparison(rows, heading="Search")
    if "mean" not in frame:
        return frame
    sign = -1 if is_higher_better(names[0]) else 1
    broken = frame["point"].isin(outside(rows)).to_numpy()
    frame.loc[broken, "verdict"] = OUTSIDE
    order = np.lexsort((sign * frame["mean"].to_numpy(), broken))  # points without a result last of their kind
    place = {int(old): new for new, old in enumerate(order)}
    bold = [(place[line], column) for line, column in frame.attrs["bold"] if not broken[line]]
    told = [*frame.attrs["notes"], f"{len(frame)} points were tried: the best of many is partly luck."]
    return table(frame.iloc[order], frame.attrs["title"], told, bold, frame.attrs["formats"])


_EQUAL_STEPS = ("At equal steps a larger M has spent less compute: see the same at equal compute.",)


def _chosen(rows: Rows, names: Sequence[str]) -> tuple[list[Metric], list[str]]:
    """The metrics that can be shown, and a sentence for each that cannot."""
    found, refused = [], []
    for name in names:
        try:
            found.append(rows.metric(name))
        except CannotShowError as error:
            refused.append(str(error))
    return found, refused


def _default(rows: Rows) -> list[str]:
    """Up to four of quality, and the loss nearest the clean image, where loss of detail shows."""
    first = "val_loss_bin0"
    own = [name for name in rows.quality() if not name.endswith(REAL)][:4]
    return [*own, first] if any(metric.name == first for metric in rows.study.metrics) else own


def compared(
    rows: Rows, metrics: Iterable[Metric], heading: str, told: Sequence[str], formats: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """The lines of metrics at hand, whether from the rows or made of them."""
    study = rows.study
    lines: list[dict[str, object]] = []
    bold: list[tuple[int, str]] = []
    remarks, missing, shown = [*rows.remarks, *told], _missing(rows), list(metrics)
    for metric in shown:
        best = resolved_best(study, metric)
        bold += [(len(lines) + index, "mean") for index, cell in enumerate(study.cells) if cell.label == best]
        lines += _metric_lines(study, metric, missing)
        remarks += [*_floor_note(study, metric), *_resolution_note(study, metric), *caveats.pooling(study, metric)]
    remarks += caveats.starting_noises(study, shown)
    frame = pd.DataFrame(lines if lines else _without_metrics(study, missing))
    if not study.partner:
        frame = frame.drop(columns=["difference", "difference ±", "p"], errors="ignore")
    if "mean ±" in frame and frame["mean ±"].notna().any():
        remarks.append(_READING if study.partner else _MEANS)
    return table(frame, heading, _once(remarks), bold, {"difference": "+", "p": ".2g", **(formats or {})})


def _floor_note(study: Study, metric: Metric) -> list[str]:
    floor = study.floor(metric)
    return [] if floor is None else [f"{metric.name}: {floor.label} score {floor.value:.3g}."]


def _without_metrics(study: Study, missing: Mapping[str, str]) -> list[dict[str, object]]:
    """Points of which none has a result, each with its reason."""
    return [
        {"point": cell.label, "runs": f"0/{len(cell.runs)}", "verdict": f"no result; {missing[cell.label]}"}
        for cell in study.cells
        if cell.label in missing
    ]


_MEANS = "± reaches of 95 % t-intervals over seeds; bold: told from every other point."
_READING = (
    "± reaches of 95 % t-intervals: of a mean, over its seeds; of a difference, paired by seed, spread pooled. "
    "p after Holm, over a metric's comparisons. Bold: told from every other point."
)


def _missing(rows: Rows) -> dict[str, str]:
    """By label, for the points that lack a run: why."""
    lacking = set(rows.runs.loc[rows.runs["status"] != FINISHED, "cell"]) if len(rows.runs) else set()
    return {cell.label: rows.missing(cell) for cell in rows.study.cells if cell.label in lacking}


def _metric_lines(study: Study, metric: Metric, missing: Mapping[str, str]) -> list[dict[str, object]]:
    apart = differences(study, metric)
    chance = _holm_p(study, metric, apart)
    lines = []
    for cell in study.cells:
        mean, found = mean_of(cell, metric), apart[cell.label]
        judged = _judged(study, cell, metric, mean, found, chance.get(cell.label))
        lines.append(
            {
                "metric": metric.name,
                "point": cell.label,
                "runs": f"{mean.n if mean else 0}/{len(cell.runs)}",
                "mean": mean.mean if mean else math.nan,
                "mean ±": _reach(mean),
                "difference": found.mean if found else math.nan,
                "difference ±": _reach(found),
                "p": chance.get(cell.label, math.nan),
                "verdict": "; ".join(filter(None, (judged, missing.get(cell.label)))),
            }
        )
    return lines


def _reach(estimate: Estimate | None) -> float:
    return math.nan if estimate is None or estimate.reach is None else estimate.reach


def _judged(
    study: Study, cell: Cell, metric: Metric, mean: Estimate | None, apart: Estimate | None, chance: float | None
) -> str:
    if mean is None:
        return "no result"
    if cell.label in study.baselines:
        return "baseline"
    if apart is None:
        return "no baseline to compare with" if study.partner else ""
    if apart.reach is None or chance is None:
        return "one seed"
    if not apart.beyond_noise:
        return "within noise"
    side = "better" if (apart.mean > 0) == is_higher_better(metric.name) else "worse"
    return side if chance < ALPHA else f"{side}, but not after Holm"


def _holm_p(study: Study, metric: Metric, apart: Mapping[str, Estimate | None]) -> dict[str, float]:
    """By label, for the differences that have an interval."""
    deviation, freedom = spread(study.cells, metric)
    tested = {label: found for label, found in apart.items() if found is not None and found.reach is not None}
    raw = [_p(found, deviation, freedom) for found in tested.values()]
    return dict(zip(tested, holm(raw).tolist(), strict=True)) if raw else {}


def _p(found: Estimate, deviation: float, freedom: int) -> float:
    error = deviation * math.sqrt(2 / found.n)
    return two_sided_p(found.mean / error, freedom) if error else float(found.mean == 0)


def resolved_best(study: Study, metric: Metric) -> str | None:
    """The cell whose difference to every other, paired by seed, is no noise after Holm; mostly there is none."""
    means = {cell.label: mean for cell in study.cells if (mean := mean_of(cell, metric)) is not None}
    if len(means) < 2:
        return None
    best = (max if is_higher_better(metric.name) else min)(means, key=lambda label: means[label].mean)
    rivals = {label: best for label in means if label != best}
    against = replace(study, partner=rivals)
    apart = differences(against, metric)
    if any(apart[label] is None for label in rivals):
        return None
    chance = _holm_p(against, metric, apart)
    return best if len(chance) == len(rivals) and max(chance.values()) < ALPHA else None


def _resolution_note(study: Study, metric: Metric) -> list[str]:
    """What the study could have found: the noise floor first."""
    deviation, freedom = spread(study.cells, metric)
    if not freedom or not deviation:
        return []
    pairs = min((len(cell.runs) for cell in study.cells), default=0)
    least = minimum_detectable_difference(deviation, pairs, freedom)
    caution = f", too few to know it well ({freedom} degrees of freedom)" if freedom < LEAST else ""
    return [
        f"{metric.name}: beyond what a seed does to all points alike, one run scatters by {deviation:.2g}{caution}; "
        f"with {pairs} seeds a true difference of {least:.2g} is found four times in five, before Holm."
    ]


def _once(sentences: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(sentences))
