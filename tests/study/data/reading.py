"""Sets on disk read whole, for tests."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from study.data import SPLITS, DataConfig, Source, Split, load
from study.data.streamed import StreamedSet

OWN_SIZE = ("cifar10", "celeba")


def config_of(name: str, path: Path, **fields: Any) -> DataConfig:
    size = None if name in OWN_SIZE else 16
    return DataConfig(name, path=str(path), **{"size": size, **fields})


def everything(name: str, path: Path) -> dict[Split, Source]:
    return {split: load(config_of(name, path), split) for split in SPLITS}


def read_all(name: str, path: Path) -> None:
    for source in everything(name, path).values():
        source.batch(torch.arange(len(source)))


def shown(source: Source) -> np.ndarray:
    """(N, H, W, 3) bytes"""
    x0 = source.batch(torch.arange(len(source)))
    return ((x0 + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def named(source: Source) -> dict[str, np.ndarray]:
    assert isinstance(source, StreamedSet)
    names = [source.listing.names[number] for number in source.numbers]
    return dict(zip(names, shown(source), strict=True))
