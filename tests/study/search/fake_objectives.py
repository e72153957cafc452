"""Runs whose losses are closed forms of their settings: no network, no data, the files of real ones."""

from __future__ import annotations

import math
from collections.abc import Callable

from study.config import RunConfig
from study.results import Row, write_rows
from study.run_directory import Failure, RunDirectory, State, Status

BEST_RATE = 2e-3
STEPS = 27

SWEEP = """\
# Which learning rate?
defaults: [backbone: dit-tiny, data: digits8, train: quick, sample: none]
overrides: {train.images: 64}
axes:
  train.lr: loguniform(1e-4, 1e-1)
  train.weight_decay: uniform(0, 1)
search: {trials: 6, sampler: random}
launcher: inline
"""


def bowl(rate: float, decay: float) -> float:
    """Least, 0, at `BEST_RATE` and a weight decay of 0.3."""
    return math.log10(rate / BEST_RATE) ** 2 + (decay - 0.3) ** 2


def bowl_run(config: RunConfig) -> State:
    return finished(config, bowl(config.train.lr, config.train.weight_decay))


def finished(config: RunConfig, loss: float) -> State:
    directory = RunDirectory.of(config)
    state = directory.read_state()
    count = directory.path / "count"
    directory.create(config)
    count.write_text(str(int(count.read_text()) + 1 if count.exists() else 1), encoding="utf-8")
    rows = [
        Row(run=directory.identity, metric=metric, value=value, units="", n=1, protocol=protocol)
        for metric, value, protocol in (("val_loss", loss, "val"), ("gmacs", config.train.weight_decay, "cost-1"))
    ]
    write_rows(directory.rows, rows)
    return directory.write_state(state, status=Status.DONE, attempts=state.attempts + 1, failure=None, message=None)


def curve_run(config: RunConfig, hear: Callable[[int, float], bool] | None = None) -> State:
    """A loss that falls towards the bowl's, step by step; a validation after each."""
    directory = RunDirectory.of(config)
    directory.create(config)
    floor = bowl(config.train.lr, config.train.weight_decay)
    for step in range(1, STEPS + 1):
        with directory.log.open("a", encoding="utf-8") as log:
            log.write(f"{step}\n")
        loss = floor + 2 * math.exp(-step / 4)
        if hear is not None and step < STEPS and hear(step * config.train.validate_every, loss):
            return directory.write_state(
                directory.read_state(), status=Status.FAILED, attempts=1, failure=Failure.PRUNED, message="pruned"
            )
    return finished(config, floor)


def diverging_run(config: RunConfig) -> State:
    """Rates above one hundredth go wrong, and one seed is a bug."""
    directory = RunDirectory.of(config)
    failure = Failure.DIVERGED if config.train.lr > 1e-2 else None
    if config.seed == 13:
        raise RuntimeError("a bug")
    if failure is None:
        return bowl_run(config)
    directory.create(config)
    return directory.write_state(
        directory.read_state(), status=Status.FAILED, attempts=1, failure=failure, message="not finite"
    )


def never(config: RunConfig) -> State:
    raise AssertionError("nothing was to be done")
