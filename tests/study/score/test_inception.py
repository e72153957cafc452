"""InceptionV3 with random weights: sFID's layer, agreement with torch-fidelity, and files that must not be opened."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from study.score.frechet import frechet, moments
from study.score.inception import Inception, inception
from study.score.inception_weights import FILE_NAME, SHA256, InceptionWeights
from study.score.spaces import hub_files, missing, open_space

Layers = dict[str, Tensor]


@pytest.fixture(scope="module")
def network(inception_weights: InceptionWeights) -> Inception:
    return inception(inception_weights)


@pytest.fixture(scope="module")
def layers(network: Inception, photos: Tensor) -> Layers:
    return network.layers(photos)


def test_stock_layers_are_bit_identical(layers: Layers, inception_weights: InceptionWeights, photos: Tensor) -> None:
    stock = FeatureExtractorInceptionV3(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        feature_extractor_weights_path=inception_weights.path,
    )
    pool, logits = stock(photos[:2])
    torch.testing.assert_close(layers["2048"][:2], pool, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(layers["logits_unbiased"][:2], logits, rtol=1e-4, atol=1e-6)
    assert set(stock.state_dict()) == set(inception(inception_weights, ["2048"]).state_dict())


def test_spatial_layer_is_adms(network: Inception, layers: Layers, photos: Tensor) -> None:
    """mixed_6 counts TensorFlow's mixed, mixed_1 ... from 5b: the seventh is 6d; its 1x1 branch is `conv`."""
    assert layers["spatial"].shape == (24, 2023)
    order = [name for name, _ in network.named_children() if name.startswith("Mixed_")]
    assert order[6] == "Mixed_6d"
    seen: list[Tensor] = []
    with_hook = network.Mixed_6d.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    network(photos[:2])
    with_hook.remove()
    branch = network.Mixed_6d.get_submodule("branch1x1")
    raw = branch.bn(branch.conv(seen[0])).relu()[:, :7]  # recomputed by hand from the block's input
    assert raw.shape[1:] == (7, 17, 17)
    torch.testing.assert_close(layers["spatial"][:2], raw.flatten(1), rtol=1e-4, atol=1e-6)


def test_spatial_alone(inception_weights: InceptionWeights, layers: Layers, photos: Tensor) -> None:
    alone = inception(inception_weights, ["spatial"]).layers(photos[:2])
    assert list(alone) == ["spatial"]
    torch.testing.assert_close(alone["spatial"], layers["spatial"][:2], rtol=1e-4, atol=1e-6)


def test_sfid_equals_an_independent_computation(layers: Layers) -> None:
    x, y = (half.double().numpy() for half in layers["spatial"].split(12))
    dx, dy = (each - each.mean(axis=0) for each in (x, y))
    nuclear = np.linalg.norm(dx @ dy.T / 11, "nuc")
    shift = x.mean(axis=0) - y.mean(axis=0)
    expected = shift @ shift + (dx**2).sum() / 11 + (dy**2).sum() / 11 - 2 * nuclear
    assert frechet(moments(x), moments(y)) == pytest.approx(expected, rel=1e-8)


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("trusted", [False, True])
def test_malicious_pickle_is_not_executed(tmp_path: Path, trusted: bool) -> None:
    """Not with a wrong checksum, and not even if its own checksum was configured."""
    mark = tmp_path / "executed"
    path = tmp_path / FILE_NAME
    with path.open("wb") as file:
        torch.save({"weight": Malicious(mark)}, file) if trusted else pickle.dump(Malicious(mark), file)
    sha = hashlib.sha256(path.read_bytes()).hexdigest() if trusted else SHA256
    with pytest.raises(ValueError, match="not a file of weights" if trusted else "must be 6726825d"):
        inception(InceptionWeights(str(path), sha))
    assert not mark.exists()
    torch.load(path, weights_only=False) if trusted else pickle.loads(path.read_bytes())
    assert mark.exists()  # the attack is a real one


def test_what_torch_fidelity_opens_is_our_own_copy(
    inception_weights: InceptionWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    load = torch.load

    def watch(file: object, **given: object) -> object:
        opened.append(str(file))
        return load(file, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "load", watch)
    inception(inception_weights, ["2048"])
    assert len(opened) == 2
    assert str(inception_weights.path) not in opened


def test_absent_weights_say_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    reason = InceptionWeights().missing()
    assert reason is not None
    assert "\n" not in reason
    for part in (FILE_NAME, SHA256, str(tmp_path / "hub" / "checkpoints")):
        assert part in reason
    assert str(tmp_path / "here.pth") in (InceptionWeights(str(tmp_path / "here.pth")).missing() or "")
    with pytest.raises(ValueError, match="not found"):
        open_space("inception", InceptionWeights(), torch.device("cpu"))
    for name in ("dinov2-vit-l-14", "clip-vit-b-32"):
        assert f"{name} not found" in (missing(name, InceptionWeights()) or "")


def test_the_hub_cache_is_looked_at_after_the_configured_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is there but wrong is told, not passed over."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / FILE_NAME
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"weights")
    sha = hashlib.sha256(b"weights").hexdigest()
    assert InceptionWeights(None, sha).missing() is None
    assert InceptionWeights(str(tmp_path / "absent.pth"), sha).missing() is None
    (tmp_path / "wrong.pth").write_bytes(b"others")
    assert f"wrong.pth has sha256 {hashlib.sha256(b'others').hexdigest()}" in (
        InceptionWeights(str(tmp_path / "wrong.pth"), sha).missing() or ""
    )


def test_another_networks_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    torch.save({"fc.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ValueError, match="does not fit InceptionV3"):
        inception(InceptionWeights(str(path), hashlib.sha256(path.read_bytes()).hexdigest()))


def test_clip_with_a_wrong_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    _, file, sha = hub_files("clip-vit-b-32")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not it")
    assert f"must be {sha}" in (missing("clip-vit-b-32", InceptionWeights()) or "")
