"""What a data set is, how one is asked for, and their registry.

A data set is one file in this package: a function that draws a split, and a `@register` line with
what it offers. Nothing else needs an edit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias, get_args

import numpy as np
from torch import Tensor

from models.denoiser import require, require_choice
from study.data.images import ImageSet

Split = Literal["train", "heldout", "reference"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a set offers, known without drawing it: a backbone's shape comes from here."""

    name: str
    size: tuple[int, int]
    channels: int
    classes: int
    counts: tuple[int, int, int]  # default images per split: train, heldout, reference
    limits: tuple[int, int, int] | None = None  # most images per split; None: as many as asked for
    texture: float | None = None  # default of each dial; None: the set does not have it
    stripe_period: float | None = None
    latent_factor: int = 1
    version: int = 1  # raise when the images change for the same config: it enters run ids


@dataclass(frozen=True)
class DataConfig:
    """Which images a run sees. What is left out becomes the set's own default, so equal sets compare equal.

    Image i of a split depends on the seed, the split and i alone: a smaller count is a prefix of a larger one.
    """

    name: str = "digits8"
    count: int | None = None  # training images
    heldout: int | None = None  # images of the validation loss
    reference: int | None = None  # images that samples are scored against
    seed: int = 0
    texture: float | None = None  # contrast of the high-frequency stripes, 0 (none) to 1
    stripe_period: float | None = None  # pixels; periods are drawn from this to twice this

    def __post_init__(self) -> None:
        offer = dataset(self.name)
        for index, name in enumerate(("count", "heldout", "reference")):
            self._fill(name, offer.counts[index])
            most = offer.limits[index] if offer.limits else None
            _require_integer(name, getattr(self, name), 1, most, self.name)
        _require_integer("seed", self.seed, 0, None, self.name)
        self._check_dial("texture", offer.texture, 0, 1)
        self._check_dial("stripe_period", offer.stripe_period, 2, min(offer.size) / 4)

    def images(self, split: Split) -> int:
        """How many images the split has."""
        counts = {"train": self.count, "heldout": self.heldout, "reference": self.reference}
        count = counts[split]
        assert count is not None  # filled at construction
        return count

    def _fill(self, name: str, default: int | float | None) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, default)

    def _check_dial(self, name: str, default: float | None, low: float, high: float) -> None:
        value = getattr(self, name)
        if default is None:
            require(value is None, name, value, f"left out: {self.name} has no such dial")
            return
        self._fill(name, default)
        number = getattr(self, name)
        real = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        require(real and low <= number <= high, name, number, f"a number in [{low:g}, {high:g}]")
        object.__setattr__(self, name, float(number))


def _require_integer(field: str, value: object, low: int, most: int | None, name: str) -> None:
    valid = f"an integer of at least {low}" if most is None else f"an integer in {low}..{most}, all that {name} has"
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(whole and low <= value and (most is None or value <= most), field, value, valid)  # type: ignore[operator]


Draw: TypeAlias = Callable[[Dataset, DataConfig, Split], tuple[Tensor, Tensor]]
"""(what is offered, what is asked for, split) -> images uint8 (N, C, H, W), labels int64 (N,)"""

_REGISTRY: dict[str, tuple[Dataset, Draw]] = {}


def register(*offers: Dataset) -> Callable[[Draw], Draw]:
    """Function decorator: `@register(Dataset(name="digits8", ...))` adds `digits8` everywhere."""

    def add(draw: Draw) -> Draw:
        for offer in offers:
            require(offer.name not in _REGISTRY, "name", offer.name, "a name no other data set has")
            _REGISTRY[offer.name] = (offer, draw)
        return draw

    return add


def datasets() -> dict[str, Dataset]:
    """Every registered set by name."""
    return {name: offer for name, (offer, _) in _REGISTRY.items()}


def dataset(name: str) -> Dataset:
    """The set of that name."""
    require_choice("name", name, tuple(_REGISTRY))
    return _REGISTRY[name][0]


@lru_cache(maxsize=8)
def load(config: DataConfig, split: Split) -> ImageSet:
    """One split, on the CPU; drawn once per process."""
    require_choice("split", split, SPLITS)
    offer, draw = _REGISTRY[config.name]
    images, labels = draw(offer, config, split)
    expected = (config.images(split), offer.channels, *offer.size)
    require(tuple(images.shape) == expected, f"{config.name}.images.shape", tuple(images.shape), str(expected))
    return ImageSet(config.name, images, labels, offer.classes, offer.latent_factor)


def stream(seed: int, split: Split) -> np.random.Generator:
    """The random numbers of a split. A draw of shape (count, k) gives row i whatever the count."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split),)))
