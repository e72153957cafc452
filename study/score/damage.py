"""What the embedded metrics can see: `python -m study.score.damage digits8 glyphs16` damages real images by degrees.

For each kind of damage: the first level that stands out from real images against other real images by three
standard deviations, and how many times the real value the worst level reaches.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from study.data import SPLITS, DataConfig, dataset, drawn, to_float, to_uint8
from study.score.extractors import embedded
from study.score.frechet import Moments, frechet, moments
from study.score.kernel_distance import KernelReference, kernel_distance, kernel_reference
from study.score.spaces import Features
from study.score.strata import strata_of

Damage = Callable[[Tensor, float, torch.Generator], Tensor]
"""(images in [-1, 1] (N,C,H,W), level, random numbers) -> damaged images"""


def noise(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    return x + level * torch.randn(x.shape, generator=generator)


def blur(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """Gaussian of `level` pixels."""
    offsets = torch.arange(-3.0, 4.0)
    kernel = torch.exp(-(offsets**2) / (2 * level**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
    padded = F.pad(x, (3, 3, 3, 3), mode="reflect")
    rows = F.conv2d(padded, kernel, groups=x.shape[1])
    return F.conv2d(rows, kernel.transpose(2, 3), groups=x.shape[1])


def swap(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """A share of the images replaced by uniform noise."""
    chosen = torch.rand(len(x), 1, 1, 1, generator=generator) < level
    return torch.where(chosen, torch.rand(x.shape, generator=generator) * 2 - 1, x)


def blocks(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """Each 2 x 2 block shifted in brightness, as patches that do not fit together."""
    height, width = x.shape[2] // 2, x.shape[3] // 2
    return x + level * F.interpolate(torch.randn(len(x), 1, height, width, generator=generator), scale_factor=2)


def unchanged(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    return x


def contrast(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    return x * (1 - level)


DAMAGES: dict[str, tuple[Damage, tuple[float, ...]]] = {
    "noise": (noise, (0.02, 0.05, 0.1, 0.2, 0.4)),
    "blur": (blur, (0.3, 0.45, 0.6, 0.9, 1.3)),
    "drop": (unchanged, (1, 2, 4, 6, 8)),  # the first so many classes left out
    "swap": (swap, (0.02, 0.05, 0.1, 0.2, 0.4)),
    "blocks": (blocks, (0.05, 0.1, 0.2, 0.4, 0.8)),
    "contrast": (contrast, (0.05, 0.1, 0.2, 0.3, 0.5)),
}


GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Sensitivity:
    """One metric under one kind of damage, against its values on real images."""

    metric: str
    damage: str
    levels: tuple[float, ...]
    values: tuple[float, ...]
    real_mean: float
    real_sd: float

    @property
    def noise_level(self) -> float:
        return self.real_mean + 3 * self.real_sd

    @property
    def detected(self) -> float | None:
        """The first level above the noise."""
        return next(
            (level for level, value in zip(self.levels, self.values, strict=True) if value > self.noise_level), None
        )

    @property
    def dynamic_range(self) -> float:
        """The worst level's value over the real one's; KD's, which is zero on average, over its noise."""
        return self.values[-1] / (3 * self.real_sd if self.metric == "kd" else self.real_mean)

    @property
    def monotone(self) -> bool:
        """Whether it only rises once above the noise."""
        seen = [value for value in self.values if value > self.noise_level]
        return seen == sorted(seen) and (not seen or self.values[-1] == seen[-1])


@dataclass(frozen=True)
class Sizes:
    n: int  # images damaged
    m: int  # of the reference
    real: int = 12  # random divisions of real images, for the noise
    damaged: int = 2  # of which so many are also damaged


def sizes_for(name: str) -> Sizes:
    return Sizes(500, 1000) if dataset(name).limits else Sizes(1000, 5000)


def sensitivities(name: str, sizes: Sizes) -> Iterator[Sensitivity]:
    """Every damage under FD and KD of the set's own extractor."""
    pool, labels = real_images(name, sizes)
    clean = features(name, pool)
    divisions = [division(labels, sizes, np.random.default_rng(seed)) for seed in range(sizes.real)]
    references = [as_reference(clean[theirs], labels[theirs]) for _, theirs in divisions]
    real = np.array(
        [distances(clean[ours], labels[ours], to) for (ours, _), to in zip(divisions, references, strict=True)]
    )  # (divisions, 2)
    for kind, (damage, levels) in DAMAGES.items():
        table = np.zeros((len(levels), 2))
        for seed, (ours, _) in enumerate(divisions[: sizes.damaged]):
            for row, level in enumerate(levels):
                generator = torch.Generator().manual_seed(seed)
                kept = ours[labels[ours] >= level] if kind == "drop" else ours
                worse = features(name, to_uint8(damage(to_float(pool[kept]), level, generator)))
                found = distances(worse, labels[kept], references[seed])
                table[row] += np.array(found) / sizes.damaged
        for column, metric in enumerate(("fd", "kd")):
            values = tuple(float(value) for value in table[:, column])
            mean, sd = float(real[:, column].mean()), float(real[:, column].std(ddof=1))
            yield Sensitivity(metric, kind, levels, values, mean, sd)


def division(labels: Tensor, sizes: Sizes, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Indices of n and of m other images, both with the pool's class proportions, as the splits have them."""
    order = generator.permutation(len(labels))
    ranked = order[np.argsort(labels.numpy()[order], kind="stable")]  # class by class, shuffled inside
    place = np.empty(len(labels))
    place[ranked] = np.arange(len(labels)) * GOLDEN % 1  # every class is spread evenly over 0..1
    chosen = torch.from_numpy(np.argsort(place))[: sizes.n + sizes.m]
    return chosen[: sizes.n], chosen[sizes.n :]


def real_images(name: str, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Images that the extractor was not trained on; all there are of a set that is too small for that."""
    small = dataset(name).limits is not None
    config = DataConfig(name) if small else DataConfig(name, heldout=sizes.n, reference=sizes.m)
    parts = [drawn(config, split) for split in (SPLITS if small else ("heldout", "reference"))]
    return torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])


@dataclass(frozen=True)
class Real:
    """Real images to compare with."""

    moments: Moments
    kernel: KernelReference


def as_reference(features: Features, labels: Tensor) -> Real:
    return Real(moments(features), kernel_reference(features, strata_of(labels, len(features))))


def distances(samples: Features, labels: Tensor, real: Real) -> tuple[float, float]:
    """(FD relative to the reference's spread, KD)"""
    kernel = kernel_distance(samples, real.kernel, strata_of(labels, len(samples)))
    return frechet(moments(samples), real.moments) / real.moments.trace, kernel.value


@torch.no_grad()
def features(name: str, images: Tensor) -> Features:
    network = embedded(name)
    return torch.cat([network(batch) for batch in images.split(500)]).numpy()


def show(name: str, sizes: Sizes, found: Sequence[Sensitivity]) -> Table:
    table = Table(title=f"{name}: {sizes.n} damaged images against {sizes.m} real ones")
    for column in ("metric", "damage", "real", "seen from", "worst / real", "monotone", "by level"):
        table.add_column(column)
    for one in found:
        by_level = "  ".join(f"{level:g}: {value:.3g}" for level, value in zip(one.levels, one.values, strict=True))
        seen = "never" if one.detected is None else f"{one.detected:g}"
        real = f"{one.real_mean:.2g} ± {one.real_sd:.1g}"
        table.add_row(one.metric, one.damage, real, seen, f"x{one.dynamic_range:.0f}", str(one.monotone), by_level)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m study.score.damage", description=__doc__)
    parser.add_argument("names", nargs="+")
    for name in parser.parse_args(arguments).names:
        sizes = sizes_for(name)
        Console(width=170).print(show(name, sizes, list(sensitivities(name, sizes))))


if __name__ == "__main__":
    main()
