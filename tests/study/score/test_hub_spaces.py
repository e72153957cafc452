"""DINOv2 and CLIP as torch-fidelity reads them from torch's hub cache, with small random networks in their place."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torch_fidelity import feature_extractor_clip, feature_extractor_dinov2

from study.score.inception_weights import InceptionWeights
from study.score.pictures import Pictures
from study.score.scoring import score
from study.score.spaces import CLIP, DINOV2, missing, open_space, sha256_of_space

CPU = torch.device("cpu")
NONE = InceptionWeights()
HUBCONF = """
import torch
dependencies = ["torch"]

def dinov2_vits14():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 14, stride=14), torch.nn.Flatten())
    url = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth"
    network.load_state_dict(torch.hub.load_state_dict_from_url(url, map_location="cpu"))
    return network
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""

    def offline(*given: object, **named: object) -> None:
        raise URLError("offline")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub"


def test_all_that_torch_fidelity_has() -> None:
    assert set(CLIP) == set(feature_extractor_clip.MODEL_METADATA)
    assert DINOV2 == feature_extractor_dinov2.MODEL_METADATA


def dinov2(hub: Path) -> Mapping[str, Tensor]:
    folder = hub / "facebookresearch_dinov2_main"
    folder.mkdir()
    (folder / "hubconf.py").write_text(HUBCONF)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = nn.Conv2d(3, 6, 14, stride=14).state_dict()
    torch.save({f"0.{key}": value for key, value in state.items()}, hub / "checkpoints" / "dinov2_vits14_pretrain.pth")
    return state


def test_dinov2(hub: Path, photos: Tensor) -> None:
    state = dinov2(hub)
    assert missing("dinov2-vit-s-14", NONE) is None
    space = open_space("dinov2-vit-s-14", NONE, CPU)
    found = space.features(photos[:3], CPU)["features"]
    assert found.shape == (3, 6 * 16 * 16)
    mean, sd = (torch.tensor(each).view(1, 3, 1, 1) * 255 for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    grid = torch.arange(224) * (32 / 224)  # TensorFlow 1's bilinear: corners start at pixel 0
    low, high = grid.long(), (grid.long() + 1).clamp(max=31)
    share = grid - low
    x = photos[:3].float()
    x = x[..., low] * (1 - share) + x[..., high] * share
    x = x[:, :, low] * (1 - share)[:, None] + x[:, :, high] * share[:, None]
    expected = nn.functional.conv2d((x - mean) / sd, state["weight"], state["bias"], stride=14).flatten(1)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-3)
    scored = score(Pictures("a", photos[:12]), Pictures("b", photos[12:]), ["fd_dinov2-vit-s-14"])[0]
    assert scored.value is not None
    assert scored.metric == "fd_dinov2-vit-s-14@12"
    assert scored.protocol.space_sha256 == sha256_of_space("dinov2-vit-s-14", NONE)


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_malicious_dinov2_is_not_executed(hub: Path, photos: Tensor, tmp_path: Path) -> None:
    dinov2(hub)
    file = hub / "checkpoints" / "dinov2_vits14_pretrain.pth"
    for content in (pickle.dumps(Malicious(tmp_path / "executed")), b"", b"not weights"):
        file.write_bytes(content)
        found = score(Pictures("a", photos), Pictures("b", photos), ["fd_dinov2-vit-s-14", "swd"])
        assert found[0].value is None
        assert f"{file} cannot be used as dinov2-vit-s-14" in found[0].reason
        assert "\n" not in found[0].reason
        assert found[1].value is not None
    assert not (tmp_path / "executed").exists()


class TinyClip(nn.Module):
    """What torch-fidelity looks for in CLIP's archive: the visual half, and the text projection's shape."""

    def __init__(self) -> None:
        super().__init__()
        half = feature_extractor_clip.VisionTransformer(
            input_resolution=32, patch_size=16, width=64, layers=1, heads=1, output_dim=12
        )
        self.visual = half
        self.text_projection = nn.Parameter(torch.zeros(8, 12))

    def forward(self, x: Tensor) -> Tensor:
        return self.visual(x)


def test_clip(hub: Path, photos: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        archive = torch.jit.trace(TinyClip().eval(), torch.rand(1, 3, 32, 32))
    archive.save(hub / "archive.pt")
    sha = hashlib.sha256((hub / "archive.pt").read_bytes()).hexdigest()
    monkeypatch.setitem(feature_extractor_clip.MODEL_METADATA["clip-vit-b-32"], "hash", sha)
    assert f"put clip-vit-b-32-{sha}.pt (sha256 {sha}) at" in (missing("clip-vit-b-32", NONE) or "")
    (hub / "archive.pt").rename(hub / "checkpoints" / f"clip-vit-b-32-{sha}.pt")
    assert missing("clip-vit-b-32", NONE) is None
    found = open_space("clip-vit-b-32", NONE, CPU).features(photos[:2], CPU)["features"]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    sd = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    expected = archive((photos[:2] / 255 - mean) / sd)  # 32 pixels are what it looks at: nothing is resized
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=2e-2, atol=2e-2)  # its weights go by float16
    grey = open_space("clip-vit-b-32", NONE, CPU).features(photos[:2, :1], CPU)["features"]
    assert grey.shape == (2, 12)


def test_what_is_missing_is_named_file_by_file(hub: Path) -> None:
    assert "put a copy of the repository facebookresearch/dinov2 at" in (missing("dinov2-vit-g-14", NONE) or "")
    (hub / "facebookresearch_dinov2_main").mkdir()
    reason = missing("dinov2-vit-g-14", NONE) or ""
    assert "put dinov2_vitg14_pretrain.pth (from https://dl.fbaipublicfiles.com/dinov2/dinov2_vitg14/;" in reason
    assert str(hub / "checkpoints" / "dinov2_vitg14_pretrain.pth") in reason
    reason = missing("clip-rn50", NONE) or ""
    sha = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
    assert reason.endswith(f"(sha256 {sha}) at {hub / 'checkpoints' / f'clip-rn50-{sha}.pt'}")
