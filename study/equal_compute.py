"""`match:` in a sweep: give every point the sizes at which it costs as much as the others.

    match: {like: baseline, free: [depth, width], tolerance: 2%}

`like` is `baseline` (each point's own) or a preset such as `dit-tiny`, on the data of the sweep; `gmacs`,
`params` and `train_pflops` give the budget in numbers. A field of `free` that a backbone lacks is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from models.denoiser import DenoiserConfig
from study.compose import options
from study.config import RunConfig, from_dict
from study.cost.match import parse
from study.strict import ConfigError, nearest
from study.sweep_file import Sweep, Value, same_value

BASELINE = "baseline"


class EqualCompute:
    """Solves for the sizes of one point after another; equal questions are asked once."""

    def __init__(self, sweep: Sweep) -> None:
        assert sweep.match is not None
        self.sweep, self.block = sweep, dict(sweep.match)
        self._solved: dict[tuple[DenoiserConfig, str], dict[str, int]] = {}
        self._check()

    def sizes(self, config: RunConfig, tree: Mapping[str, Any], baseline: RunConfig) -> dict[str, int]:
        """The solved fields of a point's backbone, as dotted keys."""
        block = self._block(config, tree, baseline)
        key = (config.backbone, repr(sorted(block.items(), key=str)))
        if key not in self._solved:
            own = [field.name for field in fields(config.backbone)]
            free = [name for name in block.get("free", ["depth", "width"]) if name in own]
            try:
                solution = parse({**block, "free": free}, config.backbone).solve(config.backbone)
            except ValueError as error:
                raise ConfigError(f"match: {error}") from error
            self._solved[key] = {f"backbone.{name}": value for name, value in solution.fields.items()}
        return self._solved[key]

    def _block(self, config: RunConfig, tree: Mapping[str, Any], baseline: RunConfig) -> dict[str, Any]:
        """The block with `like` as a number of GMACs, and with what a run's own length decides."""
        if "train_pflops" in self.block:
            return {"images": config.train.images, **self.block}
        if "like" not in self.block:
            return self.block
        like = self.block["like"]
        model = baseline if like == BASELINE else from_dict({**tree, "backbone": options("backbone")[like]})
        rest = {key: value for key, value in self.block.items() if key != "like"}
        return {**rest, "gmacs": model.backbone.macs().total / 1e9}

    def _check(self) -> None:
        """What can be said before any point is known."""
        like = self.block.get("like")
        if like == BASELINE and not self.sweep.baseline:
            raise self._error("like", "match: like: baseline needs a baseline:")
        known = [BASELINE, *options("backbone")]
        if like is not None and like not in known:
            raise self._error("like", f"match: like={like!r} is not a backbone{nearest(str(like), known)}")
        for name in self.block.get("free", []):
            if f"backbone.{name}" in self.sweep.keys:
                raise self._error("free", f"match: backbone.{name} is an axis and cannot be free as well")

    def _error(self, key: str, message: str) -> ConfigError:
        return self.sweep.source.error(("match", key), message)


def partner_values(sweep: Sweep, values: Mapping[str, Value]) -> dict[str, Value]:
    """The baseline that a point is compared with: the same point, but for the baseline's values."""
    moved: dict[str, Value] = {}
    for axes in sweep.axes:
        if set(axes.values) & set(sweep.baseline):
            steps = (s for s in axes.steps() if all(same_value(s[k], v) for k, v in sweep.baseline.items() if k in s))
            step = next(steps, None)
            if step is None:  # values that each occur, but never together
                raise sweep.source.error(("baseline",), f"baseline: matches no entry of {' with '.join(axes.values)}")
            moved |= step
    return {**values, **moved}
