"""`tuned:` in a sweep: every point takes the best values that a search found for its family.

tuned: tune_lr
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from study.strict import ConfigError
from study.sweep_file import Sweep, read_sweep
from study.trials_file import read_trials

OPEN = ("waiting", "running")  # trials to come: what is best now need not be in the end


class Tuned:
    """What one search found, by family."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep

    def values(self, tree: Mapping[str, Any], presets: Mapping[str, str]) -> dict[str, Any]:
        """The best trial's values for a point made of these presets."""
        folder = Path(str(tree["results"])) / self.sweep.tuned
        search, lines = _read(folder)
        if search.search is None:
            raise self._error(f"{folder / 'sweep.yaml'} is no search")
        per = search.search.per
        mine = [line for line in lines if not per or line["values"].get(per) == presets.get(per)]
        done = [line for line in mine if line["state"] == "complete"]
        within = [line for line in done if line.get("feasible", True)]
        unfinished = sum(line["state"] in OPEN for line in lines)
        family = f" of {per}={presets.get(per)}" if per else ""
        if not mine or not (done or unfinished):
            raise self._error(f"{folder} has no finished trial{family}")
        if unfinished:
            told = f"{unfinished} of {len(lines)} trials are not done"
            raise self._error(f"{folder} is an unfinished search, {told}: its own command continues it")
        if not within:
            raise self._error(f"{folder} has no finished trial{family} within the constraints")
        (metric, direction), *more = search.search.directions.items()
        if more:
            raise self._error(f"{folder} has several objectives, and no one best trial")
        if not all(isinstance(line["objectives"].get(metric), int | float) for line in within):
            raise self._error(f"{folder / 'trials.json'} has finished trials without {metric}")
        sign = 1 if direction == "minimize" else -1
        best = min(within, key=lambda line: sign * line["objectives"][metric])
        return {key: value for key, value in best["values"].items() if key != per}

    def _error(self, reason: str) -> ConfigError:
        return self.sweep.source.error(("tuned",), f"tuned: {reason}")


def described(sweep: Sweep, results: Path) -> str:
    """For tables."""
    search, _ = _read(results / sweep.tuned)
    assert search.search is not None
    return f"each tuned ({search.search.trials} trials)"


def _read(folder: Path) -> tuple[Sweep, list[dict[str, Any]]]:
    try:
        stamp = (folder / "trials.json").stat().st_mtime_ns
    except OSError as error:
        raise ConfigError(f"tuned: {folder} holds no search: {error.strerror}; run it first") from error
    return _parsed(folder, stamp)


@cache
def _parsed(folder: Path, stamp: int) -> tuple[Sweep, list[dict[str, Any]]]:
    """Once per state of the file: a sweep has many points."""
    return read_sweep(folder / "sweep.yaml"), read_trials(folder)
