"""Feature spaces by name: the embedded extractors, and torch-fidelity's Inception, DINOv2 and CLIP.

Whether a space can be used here is known before anything is trained: `missing(name, weights)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.denoiser import require, require_choice
from study.atomic import sha256_of
from study.score.extractors import config_of, embedded, embedded_sha, manifest
from study.score.inception_weights import LAYERS, WIDTHS, InceptionWeights

INCEPTION = "inception"
DINOV2 = {f"dinov2-vit-{size}-14": f"dinov2_vit{size}14" for size in "sblg"}
DINOV2_FOLDER = "facebookresearch_dinov2_main"
DINOV2_ORIGIN = "https://dl.fbaipublicfiles.com/dinov2"
CLIP = (
    *("clip-rn50", "clip-rn101", "clip-rn50x4", "clip-rn50x16", "clip-rn50x64"),
    *("clip-vit-b-32", "clip-vit-b-16", "clip-vit-l-14", "clip-vit-l-14-336px"),
)

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Space:
    """Frozen networks as a function of uint8 images; images of another channel count are turned grey or RGB."""

    name: str
    sha256: str  # of the weights
    channels: int
    layers: Callable[[Tensor], Mapping[str, Tensor]]  # uint8 (B, C, H, W) -> {layer: (B, d)}

    @torch.no_grad()
    def features(
        self, images: Tensor, device: torch.device, batch: int = 100, told: Callable[[int], None] = lambda done: None
    ) -> dict[str, Features]:
        """{layer: (N, d)}; `told` hears the number of images done after each batch."""
        found: dict[str, list[Features]] = {}
        for piece in as_channels(images, self.channels).split(batch):
            for layer, values in self.layers(piece.to(device)).items():
                found.setdefault(layer, []).append(values.float().cpu().numpy())
            told(len(piece))
        features = {layer: np.concatenate(pieces) for layer, pieces in found.items()}
        for layer, whole in features.items():  # a comparison with NaN is false, which would look like a low score
            require(bool(np.isfinite(whole).all()), f"{self.name} {layer}", "NaN or infinity", "finite features")
        return features


def spaces() -> tuple[str, ...]:
    return (*manifest(), INCEPTION, *DINOV2, *CLIP)


def width(name: str, layer: str) -> int | None:
    """Features per image, where known without opening the network."""
    if name in manifest():
        return config_of(manifest()[name]["network"]).features
    return WIDTHS.get(layer)


def missing(name: str, weights: InceptionWeights) -> str | None:
    """Why the space cannot be used on this machine, and what to do; None if it can."""
    require_choice("space", name, spaces())
    if name in manifest():
        return None
    if name == INCEPTION:
        return weights.missing()
    folder, file, sha = hub_files(name)
    if not folder.exists():
        return f"{name} not found: put a copy of the repository facebookresearch/dinov2 at {folder}"
    if not file.exists():
        model = file.name.removesuffix("_pretrain.pth")
        known = f"sha256 {sha}" if sha else f"from {DINOV2_ORIGIN}/{model}/; no checksum is published"
        return f"{name} not found: put {file.name} ({known}) at {file}"
    if sha and sha256_of(file) != sha:
        return f"{file} has sha256 {sha256_of(file)}: must be {sha}"
    return None


def open_space(name: str, weights: InceptionWeights, device: torch.device, layers: Iterable[str] = LAYERS) -> Space:
    """The networks, on the device; a ValueError with the reason if they are not there."""
    if reason := missing(name, weights):
        raise ValueError(reason)
    sha = sha256_of_space(name, weights)
    if name in manifest():
        extractor = embedded(name).to(device)
        return Space(name, sha, extractor.config.channels, lambda x: {"features": extractor(x)})
    if name == INCEPTION:
        from study.score.inception import inception  # torch-fidelity takes seconds to import

        return Space(name, sha, 3, inception(weights, list(layers)).to(device).layers)
    return _from_hub(name, sha, device)


def sha256_of_space(name: str, weights: InceptionWeights) -> str:
    """Of its weights, which must be on this machine."""
    if name in manifest():
        return embedded_sha(name)
    return weights.sha256 if name == INCEPTION else sha256_of(hub_files(name)[1])


def _from_hub(name: str, sha: str, device: torch.device) -> Space:
    """torch-fidelity's wrapper around a network that torch's hub cache holds."""
    from torch_fidelity.utils import create_feature_extractor

    _, file, _ = hub_files(name)
    if name in CLIP:  # a TorchScript archive, whose sha256 was checked
        given, layer = {"feature_extractor_weights_path": str(file)}, "clip"
    else:
        given, layer = {}, "dinov2"
    try:
        if name in DINOV2:  # will be unpickled: let it be tensors and nothing else
            torch.load(file, map_location="cpu", weights_only=True)
        network = create_feature_extractor(name, [layer], cuda=False, verbose=False, **given).to(device)
    except Exception as error:  # of a stranger's code, or of its weights
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"{file} cannot be used as {name}: {reason}") from error
    return Space(name, sha, 3, lambda x: {"features": network(x)[0]})


def hub_files(name: str) -> tuple[Path, Path, str]:
    """What torch-fidelity reads without a download: code folder, weights, and their sha256 if one is published."""
    hub = Path(torch.hub.get_dir())
    if name in DINOV2:
        return hub / DINOV2_FOLDER, hub / "checkpoints" / f"{DINOV2[name]}_pretrain.pth", ""
    from torch_fidelity.feature_extractor_clip import MODEL_METADATA

    sha = MODEL_METADATA[name]["hash"]
    return Path("."), hub / "checkpoints" / f"{name}-{sha}.pt", sha


def as_channels(images: Tensor, channels: int) -> Tensor:
    """Grey repeated as RGB, or RGB that is grey throughout as one channel."""
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1)
    grey = bool((images == images[:, :1]).all())
    require(grey and channels == 1, "images.channels", images.shape[1], f"{channels}, as the extractor takes")
    return images[:, :1]
