"""Random networks in the place of downloaded ones: an InceptionV3 state dict, and a tiny torch-fidelity extractor."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from study.score.inception_weights import FILE_NAME, InceptionWeights


@pytest.fixture(autouse=True)
def no_downloads(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever weights this machine has are not seen."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.getbasetemp() / "no-weights"))


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> InceptionWeights:
    """InceptionV3 with random weights at a local path, and its true checksum."""
    path = tmp_path_factory.mktemp("weights") / FILE_NAME
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(random_inception_state(path), path)
    return InceptionWeights(str(path), hashlib.sha256(path.read_bytes()).hexdigest())


def random_inception_state(scratch: Path) -> dict[str, Tensor]:
    """torch-fidelity builds the network only from a file: let it load nothing strictly once."""
    torch.save({}, scratch)
    strict = FeatureExtractorInceptionV3.load_state_dict
    try:
        FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None  # type: ignore[method-assign]
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(scratch)
        )
    finally:
        FeatureExtractorInceptionV3.load_state_dict = strict  # type: ignore[method-assign]
    return network.state_dict()


@pytest.fixture(scope="session")
def photos() -> Tensor:
    """24 random uint8 images with some structure: (24, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(24, 3, 8, 8, generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear").to(torch.uint8)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
