"""What a checkpoint file holds, read without running anything in it.

torch's own reader for weights runs no code from the file. Training checkpoints often carry settings and callbacks
of the code that wrote them; of known kinds such objects are read as empty stand-ins, all others are refused by name.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

TORCH_FILES = (".pt", ".pth", ".ckpt", ".bin")

BAGGAGE = (
    "argparse",
    "pathlib",
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "omegaconf",
    "ml_collections",
    "numpy",
)
"""Packages whose objects training codes save beside their weights. None of their code is run, or even imported."""


class CheckpointError(ValueError):
    """A file that cannot be taken for the weights it was said to be; the first line says why."""


class Inert:
    """In the place of an object of a known package: takes whatever is given, and does nothing with it."""

    def __init__(self, *given: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_checkpoint(path: Path) -> Any:
    """The tree of mappings and tensors in a torch or safetensors file; tensors stay on disk until they are used."""
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file: must be a checkpoint ({', '.join(TORCH_FILES)}, .safetensors)")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in TORCH_FILES:
        raise CheckpointError(f"{path} is of no known kind: must be one of {', '.join(TORCH_FILES)}, .safetensors")
    return _read_torch(path)


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {_first_line(error)}") from error


def _read_torch(path: Path) -> Any:
    zipped = zipfile.is_zipfile(path)
    try:
        with _standing_in(path) if zipped else safe_globals([]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is refused, for it is not plain weights: {_first_line(error)}") from error
    except Exception as error:  # torch's readers make a dozen kinds of a damaged file
        raise CheckpointError(f"{path} cannot be read as a torch file: {_first_line(error)}") from error


@contextmanager
def _standing_in(path: Path) -> Iterator[None]:
    """Known baggage becomes inert; anything else that the file wants called is refused before it is read."""
    wanted = get_unsafe_globals_in_checkpoint(path)
    foreign = sorted(name for name in wanted if name.split(".")[0] not in BAGGAGE)
    if foreign:
        raise CheckpointError(f"{path} is refused, for loading it would run {', '.join(foreign)}")
    with safe_globals([(type("Inert", (Inert,), {}), name) for name in wanted]):
        yield


def _first_line(error: Exception) -> str:
    """Without torch's advice to load the file in spite of all."""
    told = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in told if "global" in line.lower() and "Unsupported" in line]
    return (named or told or [type(error).__name__])[0].split(" Please use")[0]


def tensors_in(tree: Any) -> dict[str, torch.Tensor]:
    """Those directly below a mapping."""
    if not isinstance(tree, Mapping):
        return {}
    return {str(name): value for name, value in tree.items() if isinstance(value, torch.Tensor)}
