"""`results/<search>/trials.json` as its readers find it: every trial whole, or the file refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from study.strict import ConfigError
from study.strict_json import read_json

NAME = "trials.json"
REMEDY = "the search writes it anew"
USUAL: dict[str, Any] = {"state": "", "failure": "", "values": {}, "runs": [], "objectives": {}, "feasible": True}
KINDS = {"state": str, "failure": str | None, "values": dict, "runs": list, "objectives": dict, "feasible": bool}


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """One mapping per trial; what a former version did not write has its usual value."""
    file = folder / NAME
    trials = read_json(file, f"{folder} holds no search", REMEDY)
    if not isinstance(trials, list) or not all(isinstance(trial, dict) for trial in trials):
        raise ConfigError(f"{file} is damaged: not a list of trials; {REMEDY}")
    whole: list[dict[str, Any]] = [{**USUAL, **trial} for trial in trials]
    for number, trial in enumerate(whole, start=1):
        wrong = next((name for name, kind in KINDS.items() if not isinstance(trial[name], kind)), None)
        if wrong is not None:
            raise ConfigError(f"{file} is damaged: {wrong} of trial {number}; {REMEDY}")
    return whole
