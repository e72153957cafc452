"""CIFAR-10 as its python version is distributed: five batches to train on, one for tests, all kept in memory.

The batches are pickles, and a pickle may run any code: only what these hold is let through.
"""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from study.data.dataset import DataConfig, Dataset, Found, Split, register_on_disk
from study.data.images import ImageSet
from study.data.splits import dealt

FOLDER = "cifar-10-batches-py"
TRAIN, TEST = tuple(f"data_batch_{number}" for number in range(1, 6)), "test_batch"
SHAPE, CLASSES = (3, 32, 32), 10
ALLOWED = {
    (module, name): getattr(np, name)
    for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("ndarray", "dtype")
}
MAKERS = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}


class _Unpickler(pickle.Unpickler):
    """Builds arrays, lists, dictionaries, numbers and text; refuses everything else by name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if (module, name) in MAKERS:
            return np.ndarray.__reduce__(np.empty(0))[0]  # numpy's own maker of arrays, wherever this version has it
        if (module, name) == ("_codecs", "encode"):
            return _encoded
        raise pickle.UnpicklingError(f"holds {module}.{name}, which no CIFAR-10 batch does")


def _encoded(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in the protocol of Python 2."""
    return text.encode(encoding)


@dataclass(frozen=True, eq=False)
class Batches:
    images: NDArray[np.uint8]  # (N, 3, 32, 32)
    labels: NDArray[np.int64]  # (N,)
    apart: NDArray[np.bool_]  # (N,): the test batch
    digest: str


@lru_cache(maxsize=2)
def read_batches(path: Path) -> Batches:
    """All six files; a small copy may have fewer images in each."""
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    missing = [name for name in (*TRAIN, TEST) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"path={str(path)!r} is not valid: must be {FOLDER} or the folder above, and lacks {', '.join(missing)}"
        )
    parts = [read_batch(folder / name) for name in (*TRAIN, TEST)]
    images = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()[:16]
    return Batches(images, labels, np.arange(len(labels)) >= len(labels) - len(parts[-1][1]), digest)


def read_batch(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        with file.open("rb") as opened:
            held = _Unpickler(opened, encoding="bytes").load()
        images, labels = held[b"data"], np.array(held[b"labels"])
    except Exception as error:  # a damaged pickle raises anything
        said = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(f"{file} is no CIFAR-10 batch: {said}") from error
    is_data = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape == (len(labels), 3072)
    if (
        not is_data
        or labels.dtype.kind not in "iu"
        or not len(labels)
        or not 0 <= labels.min() <= labels.max() < CLASSES
    ):
        raise ValueError(f"{file} is no CIFAR-10 batch: must hold N x 3072 bytes and N labels from 0 to 9")
    return images.reshape(-1, *SHAPE), labels.astype(np.int64)


def find(path: Path) -> Found:
    batches = read_batches(path)
    apart = int(batches.apart.sum())
    return Found(len(batches.labels) - apart, apart, CLASSES, batches.digest)


@register_on_disk(Dataset(name="cifar10", size=(32, 32), channels=3, classes=10, counts=(50_000, 2_000, 8_000)), find)
def open_cifar10(config: DataConfig, split: Split) -> ImageSet:
    batches = read_batches(Path(str(config.path)))
    numbers = dealt(batches.labels, batches.apart, config, split)
    labels = torch.from_numpy(batches.labels[numbers])
    return ImageSet(
        config.name,
        torch.from_numpy(batches.images[numbers]),
        labels if config.classes else torch.zeros_like(labels),
        config.classes or 0,
    )
