"""What a data set is, how one is asked for, and their registry.

A data set is one file in this package. An embedded one is a function that draws a split, and a `@register` line
with what it offers; one on disk is a function that opens a split, another that finds out what lies at a path, and
a `@register_on_disk` line. Nothing else needs an edit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from torch import Tensor

from models.denoiser import require, require_choice
from study.data.images import ImageSet
from study.data.source import Source
from study.strict import ConfigError

Split = Literal["train", "heldout", "reference"]
SPLITS: tuple[Split, ...] = get_args(Split)
COUNTS = ("count", "heldout", "reference")  # the fields that say how many images a split has
ON_DISK = ("path", "size", "classes", "digest")  # fields of sets on disk only
MOST_HELDOUT, MOST_REFERENCE = 2_000, 10_000  # images, unless more are asked for


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a set offers, known without drawing it; of one on disk, what it usually holds, for plans made elsewhere."""

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
    on_disk: bool = False
    any_size: bool = False  # on disk: `data.size` may be chosen


@dataclass(frozen=True)
class Found:
    """What lies at a path, known from its listing alone."""

    train: int  # images
    apart: int  # images that the set itself keeps apart (val, test); 0: what is not trained on comes out of `train`
    classes: int  # 0: unlabelled
    digest: str  # of names, sizes and labels, or of the content: other images, another digest
    size: int | None = None  # pixels along a side, if the set has but one
    reference: int | None = None  # reference images kept apart from both

    def has_enough(self) -> bool:
        """An image for each split."""
        kept = 1 if self.reference is None else 0  # of those for the reference
        return (self.train >= 1 and self.apart >= 1 + kept) if self.apart else self.train >= 2 + kept

    def settle(self, count: int | None, heldout: int | None, reference: int | None) -> tuple[int, int, int]:
        """Images per split, what is left out filled in."""
        both = self.reference is None  # held out and of the reference, they share what is kept apart
        pool, share = (self.apart, 2 if both else 1) if self.apart else (self.train, 20)
        heldout = min(max(pool // share, 1), MOST_HELDOUT) if heldout is None else heldout
        rest = pool - heldout if self.apart else pool // 10
        most = max(rest, 1) if self.reference is None else self.reference
        reference = min(most, MOST_REFERENCE) if reference is None else reference
        taken = heldout + (reference if self.reference is None else 0)
        count = self.train - (0 if self.apart else taken) if count is None else count
        return count, heldout, reference

    def check(self, counts: tuple[int, int, int], name: str) -> None:
        """Refuse splits that would share an image."""
        for field, number in zip(COUNTS, counts, strict=True):
            _require_integer(field, number, 1, None, name)
        count, heldout, reference = counts
        if self.reference is not None:
            _require_integer("reference", reference, 1, self.reference, name)
            reference = 0
        if self.apart:
            _require_integer("count", count, 1, self.train, name)
            valid = f"at most {self.apart} with data.reference={reference}: the images kept apart from training"
            require(heldout + reference <= self.apart, "heldout", heldout, valid)
        else:
            valid = f"at most {self.train - heldout - reference}: {self.train} less those held out and of the reference"
            require(sum((count, heldout, reference)) <= self.train, "count", count, valid)


@dataclass(frozen=True)
class DataConfig:
    """Which images a run sees. What is left out becomes the set's own default, so equal sets compare equal.

    Image i of a split depends on the seed, the split and i alone: a smaller count is a prefix of a larger one.
    Of a set on disk, what is left out is found at `path`; without one it can be planned with, and no more.
    """

    name: str = "digits8"
    count: int | None = None  # training images
    heldout: int | None = None  # images of the validation loss
    reference: int | None = None  # images that samples are scored against
    seed: int = 0
    texture: float | None = None  # contrast of the high-frequency stripes, 0 (none) to 1
    stripe_period: float | None = None  # pixels; periods are drawn from this to twice this
    path: str | None = None  # where a set on disk lies: not part of a run's id
    size: int | None = None  # pixels along a side, after cropping
    classes: int | None = None  # 0: leave the labels out
    digest: str | None = None  # of what lies at `path`; left out: of what lies there now

    def __post_init__(self) -> None:
        offer = dataset(self.name)
        _require_integer("seed", self.seed, 0, None, self.name)
        self._check_dial("texture", offer.texture, 0, 1)
        self._check_dial("stripe_period", offer.stripe_period, 2, min(offer.size) / 4)
        if offer.on_disk:
            self._check_on_disk(offer)
            return
        for index, name in enumerate(COUNTS):
            self._fill(name, offer.counts[index])
            most = offer.limits[index] if offer.limits else None
            _require_integer(name, getattr(self, name), 1, most, self.name)
        for name in ON_DISK:
            require(getattr(self, name) is None, name, getattr(self, name), f"left out: {self.name} is not on disk")

    def images(self, split: Split) -> int:
        """How many images the split has, or usually has."""
        index = SPLITS.index(split)
        count = (self.count, self.heldout, self.reference)[index]
        return dataset(self.name).counts[index] if count is None else count

    def meaning(self) -> dict[str, Any]:
        """All that decides which images these are: of a set on disk, what it holds and not where it lies."""
        shared = {name: getattr(self, name) for name in ("name", *COUNTS, "seed")}
        own = ("size", "classes", "digest") if dataset(self.name).on_disk else ("texture", "stripe_period")
        return {**shared, **{name: getattr(self, name) for name in own}}

    def _check_on_disk(self, offer: Dataset) -> None:
        if self.path is not None:  # a job may start in another folder
            object.__setattr__(self, "path", str(Path(self.path).expanduser().absolute()))
        for name in COUNTS:
            if getattr(self, name) is not None:
                _require_integer(name, getattr(self, name), 1, None, self.name)
        if self.classes is not None:
            _require_integer("classes", self.classes, 0, None, self.name)
        if self.size is not None:
            _require_integer("size", self.size, 1, None, self.name)
            side = offer.size[0] * offer.latent_factor
            require(offer.any_size or self.size == side, "size", self.size, f"{side}, or left out, for {self.name}")
        known = (self.count, self.heldout, self.reference, self.size, self.classes, self.digest)
        if self.path is not None and None in known:
            self._settle(offer, find(self.name, self.path))

    def _settle(self, offer: Dataset, found: Found) -> None:
        """Become a config that says all there is to know without another look at the disk."""
        require(found.has_enough(), "path", self.path, "a set with an image for each of its splits")
        counts = found.settle(self.count, self.heldout, self.reference)
        found.check(counts, self.name)
        for name, count in zip(COUNTS, counts, strict=True):
            self._fill(name, count)
        self._fill("size", found.size or offer.size[0] * offer.latent_factor)
        fits = found.size in (None, self.size)
        require(fits, "size", self.size, f"{found.size}, the size of the images in {self.path}, or left out")
        self._fill("classes", found.classes)
        valid = (
            f"0 or {found.classes}, the classes of {self.path}" if found.classes else f"0: {self.path} has no labels"
        )
        require(self.classes in (0, found.classes), "classes", self.classes, valid)
        self._fill("digest", found.digest)
        check_digest(self, found)

    def _fill(self, name: str, default: int | float | str | None) -> None:
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

Find: TypeAlias = Callable[[Path], Found]
"""What lies at a path; refuses in one line what is not such a set. Asked often: remember what was found."""

Open: TypeAlias = Callable[[DataConfig, Split], Source]
"""A split of what lies at `config.path`; every field of the config is filled in."""

_REGISTRY: dict[str, Dataset] = {}
_DRAWN: dict[str, Draw] = {}
_ON_DISK: dict[str, tuple[Find, Open]] = {}


def register(*offers: Dataset) -> Callable[[Draw], Draw]:
    """Function decorator: `@register(Dataset(name="digits8", ...))` adds `digits8` everywhere."""

    def add(draw: Draw) -> Draw:
        for offer in offers:
            _add(offer)
            _DRAWN[offer.name] = draw
        return draw

    return add


def register_on_disk(offer: Dataset, find: Find) -> Callable[[Open], Open]:
    """Function decorator: `@register_on_disk(Dataset(name="imagenet", ...), find)` adds `imagenet` everywhere."""

    def add(open_split: Open) -> Open:
        _add(replace(offer, on_disk=True))
        _ON_DISK[offer.name] = (find, open_split)
        return open_split

    return add


def _add(offer: Dataset) -> None:
    require(offer.name not in _REGISTRY, "name", offer.name, "a name no other data set has")
    _REGISTRY[offer.name] = offer


def datasets() -> dict[str, Dataset]:
    """Every registered set by name."""
    return dict(_REGISTRY)


def dataset(name: str) -> Dataset:
    """The set of that name."""
    require_choice("name", name, tuple(_REGISTRY))
    return _REGISTRY[name]


def offered(config: DataConfig) -> Dataset:
    """What the set offers as it is asked for: a backbone's shape comes from here, and no image is read."""
    offer = dataset(config.name)
    if not offer.on_disk:
        return offer
    side = offer.size[0] if config.size is None else config.size // offer.latent_factor
    classes = offer.classes if config.classes is None else config.classes
    counts = (config.images("train"), config.images("heldout"), config.images("reference"))
    return replace(offer, size=(side, side), classes=classes, counts=counts, limits=counts)


def find(name: str, path: str) -> Found:
    """What lies at a path, as a set of that name."""
    place = Path(path).expanduser().absolute()
    require(place.exists(), "path", path, "a file or folder that exists")
    return _ON_DISK[name][0](place)


def check_digest(config: DataConfig, found: Found) -> None:
    """Refuse images other than those the config was made for."""
    if config.digest != found.digest:
        raise ValueError(
            f"digest={config.digest!r} is not valid: {config.path} holds other images, of digest {found.digest!r}"
        )


@lru_cache(maxsize=8)
def load(config: DataConfig, split: Split) -> Source:
    """One split, on the CPU; drawn or opened once per process."""
    require_choice("split", split, SPLITS)
    return _open(config, split) if dataset(config.name).on_disk else drawn(config, split)


def drawn(config: DataConfig, split: Split) -> ImageSet:
    """One split of an embedded set, as two tensors in memory."""
    offer = dataset(config.name)
    require_choice("name", config.name, tuple(_DRAWN))
    images, labels = _DRAWN[config.name](offer, config, split)
    expected = (config.images(split), offer.channels, *offer.size)
    require(tuple(images.shape) == expected, f"{config.name}.images.shape", tuple(images.shape), str(expected))
    return ImageSet(config.name, images, labels, offer.classes, offer.latent_factor)


def check_has_path(config: DataConfig) -> None:
    """Refuse to run on a set on disk that could only be planned with."""
    if dataset(config.name).on_disk and config.path is None:
        raise ConfigError(f"data.path=None is not valid: must be where {config.name} lies: data.path=...")


def _open(config: DataConfig, split: Split) -> Source:
    check_has_path(config)
    check_digest(config, find(config.name, str(config.path)))
    return _ON_DISK[config.name][1](config, split)


def stream(seed: int, split: Split) -> np.random.Generator:
    """The random numbers of a split. A draw of shape (count, k) gives row i whatever the count."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split),)))
