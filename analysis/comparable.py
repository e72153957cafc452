"""Which printed line a run of ours stands against, and why it cannot, where it cannot."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import yaml

from models.denoiser import named_config

SCORES = ("fid", "sfid", "is", "precision", "recall")
SEVERAL_SIZES = ("imagenet", "celeba")  # whose name alone does not say how large the images are
GIVEN_BY_DATA = {"size", "channels", "classes", "latent_factor", "learn_sigma"}
NOT_PRINTED = {"M", "stream", "resample", "positions", "state", "init", "discretisation", "ssm_lr_scale"}
LEFT_OPEN = GIVEN_BY_DATA | NOT_PRINTED | {"class_dropout", "label_std"}
Config = Mapping[str, Any]


@dataclass(frozen=True)
class PrintedLine:
    """Scores of one model on one data set, as printed or corrected."""

    model: str
    setting: str  # unguided | guided | unconditional
    data: str  # imagenet256, lsun-church ...
    step: int | None
    values: Mapping[str, float]

    @property
    def headline(self) -> str:
        return f"{self.model} {self.setting}, {self.data}"


def printed_lines(frame: pd.DataFrame) -> list[PrintedLine]:
    """The scores among published rows, line by line."""
    chosen = frame[frame["metric"].isin(SCORES)]
    keys = ["model", "setting", "dataset", "resolution", "step"]
    return [_line(own) for _, own in chosen.groupby(keys, sort=False, dropna=False)]


def _line(own: pd.DataFrame) -> PrintedLine:
    first = own.iloc[0]
    data = f"{first['dataset']}{first['resolution']}" if first["dataset"] in SEVERAL_SIZES else str(first["dataset"])
    step = None if pd.isna(first["step"]) else int(first["step"])
    values = dict(zip(own["metric"], own["best"].astype(float), strict=True))
    return PrintedLine(str(first["model"]), str(first["setting"]), data, step, values)


def against(lines: Sequence[PrintedLine], count: str, reference: str, config: Config) -> tuple[PrintedLine, str]:
    """The line of the run's own reference, model and guidance, or the nearest; and why it is not its own, or ""."""
    faults: list[Callable[[PrintedLine], str]] = [
        lambda line: incomparable(count, line.data, reference),
        lambda line: other_model(line.model, config),
        lambda line: other_guidance(line.setting, config),
        lambda line: other_length(line.step, config),
    ]
    for fault in faults:
        fitting = [line for line in lines if not fault(line)]
        if not fitting:
            return lines[0], fault(lines[0])
        lines = fitting
    return lines[0], ""


def incomparable(count: str, data: str, reference: str) -> str:
    """Why a score of ours cannot stand beside a printed one; empty if it can."""
    if count.lower() != "50k":
        return f"scored on {count or 'unknown'} images, not 50k"
    words = re.findall(r"[a-z]+|\d+", data)
    end = r"(?!\d)" if words[-1].isdigit() else r"(?![a-z])"
    named = re.search("[^a-z0-9]*".join(words) + end, reference.lower())
    several = "," in reference
    return "" if named and not several else f"its reference is {reference or 'unknown'}"


def other_model(model: str, config: Config) -> str:
    """What makes our network another than the printed one, by every field that the paper fixes."""
    name = model.removesuffix("-G").lower()
    family, _, size = name.partition("-")
    backbone = config.get("backbone") or {}
    if backbone.get("name") != family:
        return f"its backbone is {backbone.get('name', 'unknown')}, not {model}"
    if not size:  # the paper's own table was not seen: which size it is, is not known
        return ""
    named = named_config(name)
    fixed = {key: value for key, value in asdict(named).items() if key not in LEFT_OPEN | named.idle()}
    wrong = next((key for key, value in fixed.items() if backbone.get(key) != value), "")
    return f"its {wrong} is {backbone.get(wrong, 'unknown')}, {model} has {fixed[wrong]}" if wrong else ""


def other_guidance(setting: str, config: Config) -> str:
    """Guided against guided; by how much, DiffuSSM and DiS do not say."""
    if setting == "unconditional":
        classes = (config.get("backbone") or {}).get("classes")
        return "" if classes == 0 else f"it knows {'unknown' if classes is None else classes} classes, not 0"
    scale = ((config.get("sample") or {}).get("sampler") or {}).get("guidance")
    fits = scale is not None and (scale != 1) == (setting == "guided")
    return "" if fits else f"its guidance is {'unknown' if scale is None else scale}, the printed line is {setting}"


def other_length(step: int | None, config: Config) -> str:
    """Only where the line says after how many steps it was scored."""
    train = config.get("train") or {}
    if step is None:
        return ""
    if not {"images", "batch"} <= set(train):
        return f"its steps are unknown, the printed line's {step:,d}"
    steps = train["images"] / train["batch"]
    return "" if steps == step else f"it trained {steps:,.0f} steps, the printed line {step:,d}"


def read_config(text: str) -> Config:
    tree = yaml.safe_load(text)
    return tree if isinstance(tree, dict) else {}
