"""The whole of torch-fidelity, from images to numbers, beside ours: FID, KID, IS, precision and recall."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics, register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from study.score.frechet import frechet, moments
from study.score.kernel_distance import kernel_distance, kernel_reference
from study.score.manifold import manifold
from study.score.metrics import Compared, inception_score

NAME = "tiny-random-convolutions"
LAYER = "features"


class TinyExtractor(FeatureExtractorBase):  # type: ignore[misc]
    """Two random convolutions, 32 features."""

    def __init__(self, name: str, features_list: list[str], **given: object) -> None:
        super().__init__(name, features_list)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU())
        self.requires_grad_(False)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (LAYER,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return LAYER

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.net(images.float() / 64 - 2).mean(dim=(2, 3)),)


class Images(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@pytest.fixture(scope="module")
def sets() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ours = torch.rand(1500, 3, 16, 16, generator=generator) * torch.rand(1500, 3, 1, 1, generator=generator)
    theirs = torch.rand(1200, 3, 16, 16, generator=generator) * torch.rand(1200, 3, 1, 1, generator=generator) ** 0.4
    return (ours * 255).to(torch.uint8), (theirs * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def registered() -> Iterator[None]:
    register_feature_extractor(NAME, TinyExtractor)
    yield
    del FEATURE_EXTRACTORS_REGISTRY[NAME]


@pytest.fixture(scope="module")
def theirs(sets: tuple[Tensor, Tensor], registered: None) -> dict[str, float]:
    return calculate_metrics(
        input1=Images(sets[0]),
        input2=Images(sets[1]),
        feature_extractor=NAME,
        fid=True,
        kid=True,
        isc=True,
        prc=True,
        kid_subset_size=1200,
        kid_subsets=20,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
        rng_seed=7,
    )


@pytest.fixture(scope="module")
def features(sets: tuple[Tensor, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    network = TinyExtractor(NAME, [LAYER])
    first, second = (network(images)[0].numpy() for images in sets)
    return first, second


def test_fid(features: tuple[np.ndarray, np.ndarray], theirs: dict[str, float]) -> None:
    ours = frechet(moments(features[0]), moments(features[1]))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)  # theirs has float32 means


def test_kid(features: tuple[np.ndarray, np.ndarray], theirs: dict[str, float]) -> None:
    ours = kernel_distance(features[0], kernel_reference(features[1]))
    difference = abs(ours.value - theirs["kernel_inception_distance_mean"])
    assert difference < 4 * theirs["kernel_inception_distance_std"] / 20**0.5 + 1e-6
    assert difference < ours.sd


def test_inception_score(features: tuple[np.ndarray, np.ndarray], theirs: dict[str, float]) -> None:
    ours = inception_score(Compared(features[0], None, seed=7), relative=False)
    assert ours.value == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert ours.interval is not None
    reach = (ours.interval[1] - ours.interval[0]) / 2
    assert reach == pytest.approx(2.2622 * theirs["inception_score_std"] / 9**0.5, rel=1e-3)  # t of 9 degrees


def test_precision_and_recall(features: tuple[np.ndarray, np.ndarray], theirs: dict[str, float]) -> None:
    found = manifold(*features).means()
    assert found["precision"] == pytest.approx(theirs["precision"], abs=2e-3)  # theirs: float32 distances
    assert found["recall"] == pytest.approx(theirs["recall"], abs=2e-3)
    swapped = manifold(features[1], features[0]).means()
    assert swapped["precision"] == pytest.approx(found["recall"])
    assert abs(found["precision"] - found["recall"]) > 0.02
