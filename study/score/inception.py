"""torch-fidelity's InceptionV3 from checked weights, and sFID's layer.

What torch-fidelity opens, and unpickles, is a file written from tensors that were read as such.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from study.score.inception_weights import FILE_NAME, LAYERS, POOL, SPATIAL, SPATIAL_CHANNELS, InceptionWeights


def inception(weights: InceptionWeights, layers: Sequence[str] = LAYERS) -> Inception:
    """The frozen network, on the CPU."""
    state = weights.read()
    with tempfile.TemporaryDirectory() as folder:
        checked = Path(folder) / FILE_NAME
        torch.save(state, checked)
        try:
            return Inception("inception-v3-compat", list(layers), feature_extractor_weights_path=str(checked))
        except RuntimeError as error:
            raise ValueError(f"{weights.candidates()[0]} does not fit InceptionV3: {_first_line(error)}") from error


class Inception(FeatureExtractorInceptionV3):  # type: ignore[misc]  # torch-fidelity is untyped
    """torch-fidelity's network with one more layer, `spatial`: ADM's mixed_6/conv:0, first 7 channels.

    In TensorFlow's count mixed_6 is Mixed_6d here, and its `conv` the 1x1 branch.
    """

    Mixed_6d: nn.Module
    features_list: list[str]

    def __init__(self, name: str, features_list: list[str], **given: str) -> None:
        super().__init__(name, features_list, **given)
        self._branch: Tensor | None = None
        branch = self.Mixed_6d.get_submodule("branch1x1")
        branch.register_forward_hook(self._keep)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (*FeatureExtractorInceptionV3.get_provided_features_list(), SPATIAL)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 (B, 3, H, W) -> the features asked for, (B, d) each."""
        asked = self.features_list
        stock = [layer for layer in asked if layer != SPATIAL] or [POOL]  # it stops after the last one asked for
        self.features_list = stock
        try:
            found = dict(zip(stock, super().forward(images), strict=True))
        finally:
            self.features_list = asked
        if SPATIAL in asked:
            found[SPATIAL] = self._spatial()
        return tuple(found[layer] for layer in asked)

    def layers(self, images: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.features_list, self(images), strict=True))

    def _spatial(self) -> Tensor:
        branch, self._branch = self._branch, None
        assert branch is not None  # the hook ran in forward
        return branch[:, :SPATIAL_CHANNELS].flatten(1).float()

    def _keep(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self._branch = output


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
