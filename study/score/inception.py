"""torch-fidelity's InceptionV3: where its weights are, whether they are the right ones, and sFID's layer.

torch-fidelity unpickles the file it is given, which can run any code. So the bytes are checked against the
published sha256, read as tensors only, and what torch-fidelity opens is a file written from these tensors.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from models.denoiser import require

FILE_NAME = "weights-inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

POOL, SPATIAL, LOGITS = "2048", "spatial", "logits_unbiased"
LAYERS = (POOL, SPATIAL, LOGITS)
SPATIAL_CHANNELS = 7  # of 192, times 17 x 17 places: ADM's 2023 numbers
WIDTHS = {POOL: 2048, SPATIAL: SPATIAL_CHANNELS * 17 * 17, LOGITS: 1008}


@dataclass(frozen=True)
class InceptionWeights:
    """Where to look first, and what must be found there. Another sha256 means another network, and other numbers."""

    path: str | None = None
    sha256: str = SHA256

    def candidates(self) -> list[Path]:
        """The configured path alone if there is one; else torch's hub cache."""
        cached = Path(torch.hub.get_dir()) / "checkpoints" / FILE_NAME
        return [Path(self.path)] if self.path else [cached]

    def missing(self) -> str | None:
        """Why there are no weights, and what to put where; None if the file is there and is the right one."""
        found = next((path for path in self.candidates() if path.is_file()), None)
        if found is None:
            return f"Inception weights not found: put {FILE_NAME} (sha256 {self.sha256}) at {self.candidates()[0]}"
        if (digest := _digest(found.read_bytes())) != self.sha256:
            return f"{found} has sha256 {digest}: must be {self.sha256} ({FILE_NAME})"
        return None

    def read(self) -> dict[str, Tensor]:
        """The state dict, out of the very bytes whose checksum was taken; nothing in them is executed."""
        reason = self.missing()
        if reason:
            raise ValueError(reason)
        path = next(path for path in self.candidates() if path.is_file())
        content = path.read_bytes()
        require(_digest(content) == self.sha256, str(path), _digest(content), f"sha256 {self.sha256}")
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{path} is not a file of weights: {str(error).splitlines()[0]}") from error
        tensors = isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())
        require(tensors, str(path), type(state).__name__, "a state dict of tensors")
        return state


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


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
