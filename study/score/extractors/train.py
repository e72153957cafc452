"""Make the shipped extractors: `python -m study.score.extractors.train digits8 glyphs16 ...`.

Trained on the `train` split with noise added, so disjoint from the `reference` split that samples are
scored against. The weights depend on the machine's floats: once published they are frozen, and numbers
made with others have another extractor sha256, hence another protocol.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.denoiser import require
from study.atomic import sha256_of, write_file, write_json
from study.data import DataConfig, ImageSet, dataset, datasets, drawn, to_float
from study.score.extractors import FOLDER, MANIFEST, Extractor, ExtractorConfig

WIDTHS = {8: (24, 48), 16: (16, 32, 48), 32: (12, 24, 32, 48), 64: (8, 16, 24, 32, 48)}
HIDDEN = 48
MOST_BYTES = 200_000


@dataclass(frozen=True)
class Recipe:
    steps: int = 800
    batch: int = 128
    rate: float = 4e-3
    smoothing: float = 0.05
    noise: float = 0.1  # largest standard deviation of the noise added, images being in [-1, 1]
    seed: int = 0


def train(name: str, recipe: Recipe) -> Extractor:
    """A classifier of the data set's training images, its features calibrated on the same images."""
    images = drawn(DataConfig(name), "train")
    torch.manual_seed(recipe.seed)
    network = Extractor(config_for(name))
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, recipe.steps)
    for x, labels in noisy_batches(images, recipe):
        loss = F.cross_entropy(network.logits(x), labels, label_smoothing=recipe.smoothing)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    network.half().float()  # as it will be stored
    network.calibrate(to_float(images.images[:5000]))
    return network.eval().requires_grad_(False)


def config_for(name: str) -> ExtractorConfig:
    offer = dataset(name)
    side = offer.size[0]
    require(side in WIDTHS and offer.classes > 1, "data", name, f"labelled images of side {sorted(WIDTHS)}")
    return ExtractorConfig(offer.channels, side, offer.classes, WIDTHS[side], HIDDEN)


def noisy_batches(images: ImageSet, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(recipe.seed)
    for _ in range(recipe.steps):
        index = torch.randint(len(images), (recipe.batch,), generator=generator)
        x = to_float(images.images[index])
        sd = recipe.noise * torch.rand(recipe.batch, 1, 1, 1, generator=generator)
        yield x + sd * torch.randn(x.shape, generator=generator), images.labels[index]


def publish(name: str, network: Extractor, recipe: Recipe, seconds: float, folder: Path = FOLDER) -> None:
    """Write the float16 weights and what they are into `folder`."""
    path = folder / f"{name}.npz"
    arrays = {key: value.numpy().astype(storage(key)) for key, value in network.state_dict().items()}
    write_file(path, lambda temporary: save(temporary, arrays))
    require(path.stat().st_size <= MOST_BYTES, str(path), path.stat().st_size, f"at most {MOST_BYTES} bytes")
    listed = folder / MANIFEST.name
    known = json.loads(listed.read_text(encoding="utf-8")) if listed.exists() else {}
    known[name] = {
        "sha256": sha256_of(path),
        "network": asdict(network.config),
        "recipe": asdict(recipe),
        "trained_on": {"split": "train", **asdict(DataConfig(name)), "sha256": drawn(DataConfig(name), "train").sha256},
        "heldout_accuracy": accuracy(network, drawn(DataConfig(name), "heldout")),
        "cpu_seconds": round(seconds, 1),
    }
    write_json(listed, dict(sorted(known.items())))


def storage(key: str) -> type[np.floating]:
    """Half precision for weights; the calibration keeps its digits."""
    return np.float32 if key in ("mean", "gain") else np.float16


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


@torch.no_grad()
def accuracy(network: Extractor, images: ImageSet) -> float:
    predicted = network.classify(images.images).argmax(dim=1)
    return round(float((predicted == images.labels).double().mean()), 4)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m study.score.extractors.train", description=__doc__)
    parser.add_argument("names", nargs="+", choices=sorted(datasets()))
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--noise", type=float, default=Recipe.noise)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    given = parser.parse_args(arguments)
    recipe = Recipe(steps=given.steps, noise=given.noise)
    for name in given.names:
        began = time.process_time()
        network = train(name, recipe)
        publish(name, network, recipe, time.process_time() - began, given.folder)
        entry = json.loads((given.folder / MANIFEST.name).read_text(encoding="utf-8"))[name]
        print(f"{name}: held-out accuracy {entry['heldout_accuracy']}, {entry['cpu_seconds']} CPU-s, {entry['sha256']}")


if __name__ == "__main__":
    main()
