"""`results/<search>/trials.json` as its readers find it: every trial whole, or the file refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from study.strict import ConfigError
from study.strict_json import parse_json

NAME = "trials.json"
USUAL: dict[str, Any] = {"state": "", "failure": "", "values": {}, "runs": [], "objectives": {}, "feasible": True}
KINDS = {"state": str, "failure": str | None, "values": dict, "runs": list, "objectives": dict, "feasible": bool}


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """One mapping per trial; what a former version did not write has its usual value."""
    file = folder / NAME
    try:
        trials = parse_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{folder} holds no search: {file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{file} is damaged: {error}; the search writes it anew") from error
    if not isinstance(trials, list) or not all(isinstance(trial, dict) for trial in trials):
        raise ConfigError(f"{file} is damaged: not a list of trials; the search writes it anew")
    whole: list[dict[str, Any]] = [{**USUAL, **trial} for trial in trials]
    for number, trial in enumerate(whole, start=1):
        wrong = next((name for name, kind in KINDS.items() if not isinstance(trial[name], kind)), None)
        if wrong is not None:
            raise ConfigError(f"{file} is damaged: {wrong} of trial {number}; the search writes it anew")
    return whole
