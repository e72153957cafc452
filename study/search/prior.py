"""What the store already holds of a space, told to the sampler before it proposes anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from study.config import to_dict
from study.plan import Standing, standing
from study.run_directory import RunDirectory, Status, load_config
from study.search.book import RUNS, Book
from study.search.trial_points import TrialPoints, mean, violations_of
from study.strict import ConfigError

MISSING = object()


def add_priors(book: Book, family: TrialPoints) -> int:
    """Every point of the space of which all runs are done, once; the number of new ones."""
    known = {run for trial in book.trials() for run in trial.user_attrs.get(RUNS, [])}
    results = family.probe().directory.path.parent
    count = 0
    for folder in sorted(results.glob("*/config.yaml")):
        if folder.parent.name in known:
            continue
        added = _add(book, family, RunDirectory(results.parent, folder.parent.name))
        known |= added
        count += bool(added)
    return count


def _add(book: Book, family: TrialPoints, directory: RunDirectory) -> set[str]:
    """The runs that became a trial."""
    try:
        if directory.read_state().status is not Status.DONE:
            return set()
        tree = to_dict(load_config(directory.config))
        values = {key: _at(tree, key) for key in family.space}
        if not all(distribution.contains(values[key]) for key, distribution in family.space.items()):
            return set()
        points = family.points(values)
        runs = {point.run for point in points}
        if directory.identity not in runs or any(standing(point)[0] is not Standing.DONE for point in points):
            return set()
        results = [mean(points, metric) for metric in book.config.directions]
        violations = violations_of(points, book.config.bounds)
    except ConfigError:  # a damaged run, one without such a metric, or no run of this space
        return set()
    book.add(values, results, [point.run for point in points], violations)
    return runs


def _at(tree: Mapping[str, Any], key: str) -> Any:
    here: Any = tree
    for part in key.split("."):
        here = here.get(part, MISSING) if isinstance(here, Mapping) else MISSING
    return here
