"""The extractors shipped with the package: frozen weights as plain arrays, one file and one sha256 per data set."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.denoiser import require, require_choice
from study.atomic import sha256_of
from study.score.extractors.network import Extractor, ExtractorConfig

FOLDER = Path(__file__).parent
MANIFEST = FOLDER / "manifest.json"


@cache
def manifest() -> dict[str, dict[str, Any]]:
    """{name: what it is, what it was trained on, the sha256 of its weights}."""
    return json.loads(MANIFEST.read_text(encoding="utf-8"))


def embedded_sha(name: str) -> str:
    require_choice("extractor", name, tuple(manifest()))
    return manifest()[name]["sha256"]


@cache
def embedded(name: str) -> Extractor:
    """The frozen extractor of a data set, on the CPU; refused if its file is not the one recorded."""
    sha = embedded_sha(name)
    path = FOLDER / f"{name}.npz"
    require(sha256_of(path) == sha, str(path), sha256_of(path), f"the weights recorded in {MANIFEST.name} ({sha})")
    network = Extractor(config_of(manifest()[name]["network"]))
    with np.load(path, allow_pickle=False) as file:
        network.load_state_dict({key: torch.from_numpy(file[key]).float() for key in file.files})
    return network.eval().requires_grad_(False)


def config_of(given: dict[str, Any]) -> ExtractorConfig:
    return ExtractorConfig(**{**given, "widths": tuple(given["widths"])})


__all__ = ["FOLDER", "MANIFEST", "Extractor", "ExtractorConfig", "config_of", "embedded", "embedded_sha", "manifest"]
