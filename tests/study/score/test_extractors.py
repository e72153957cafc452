"""The shipped extractors: what the manifest says of them is true, and they tell classes apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from study.atomic import sha256_of
from study.data import DataConfig, load
from study.score import class_agreement, class_agreement_interval
from study.score import extractors as package
from study.score.extractors import FOLDER, Extractor, config_of, embedded, manifest
from study.score.extractors.train import Recipe, publish, train

SHIPPED = {"digits8", "glyphs16", "glyphs32", "glyphs64", "glyphtex32", "glyphtex64"}


def test_shipped_files_are_the_recorded_ones() -> None:
    assert set(manifest()) == SHIPPED
    assert {path.stem for path in FOLDER.glob("*.npz")} == SHIPPED
    for name, entry in manifest().items():
        path = FOLDER / f"{name}.npz"
        assert sha256_of(path) == entry["sha256"]
        assert path.stat().st_size <= 200_000


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_trained_on_other_images_than_the_reference(name: str) -> None:
    """The very images, not only other names of splits: 8x8 digits could come twice."""
    trained_on = manifest()[name]["trained_on"]
    assert trained_on["split"] == "train"
    if name == "digits8":
        training, reference = (load(DataConfig(name), split) for split in ("train", "reference"))
        assert training.sha256 == trained_on["sha256"]
        seen = {image.numpy().tobytes() for image in training.images}
        assert not any(image.numpy().tobytes() in seen for image in reference.images)


@pytest.mark.parametrize(("name", "least"), [("digits8", 0.97), ("glyphs16", 0.99), ("glyphtex32", 0.98)])
def test_classes_of_reference_images(name: str, least: float) -> None:
    """And shuffled labels agree one time in ten: the score is about labels."""
    config = DataConfig(name) if name == "digits8" else DataConfig(name, reference=400)
    real = load(config, "reference")
    assert class_agreement(real.images, real.labels, name) >= least
    low, high = class_agreement_interval(real.images, real.labels, name)
    assert low <= class_agreement(real.images, real.labels, name) <= high
    assert class_agreement(real.images, (real.labels + 1) % 10, name) < 0.03
    shuffled = real.labels[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    assert class_agreement(real.images, shuffled, name) == pytest.approx(0.1, abs=0.06)


def test_features_are_centred_and_of_unit_size() -> None:
    features = embedded("digits8")(load(DataConfig("digits8"), "train").images)
    assert float(features.mean(dim=0).abs().max()) < 0.02
    assert float((features**2).mean()) == pytest.approx(1, abs=0.02)


def test_features_do_not_depend_on_the_batch() -> None:
    images = load(DataConfig("digits8"), "heldout").images[:40]
    network = embedded("digits8")
    torch.testing.assert_close(network(images)[7:9], network(images[7:9]), rtol=1e-5, atol=1e-5)


def test_changed_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray((FOLDER / "digits8.npz").read_bytes())
    content[5000] ^= 1
    (tmp_path / "digits8.npz").write_bytes(content)
    monkeypatch.setattr(package, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"digits8\.npz.*recorded"):
        embedded.__wrapped__("digits8")


def test_wrong_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images\.shape"):
        embedded("digits8")(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="uint8"):
        embedded("digits8")(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="digits9"):
        embedded("digits9")


def test_training_leaves_what_loading_expects(tmp_path: Path) -> None:
    """A few steps beat guessing, the written file gives the network's own features up to half precision."""
    recipe = Recipe(steps=60)
    network = train("digits8", recipe)
    publish("digits8", network, recipe, 1.0, tmp_path)
    entry = json.loads((tmp_path / "manifest.json").read_text())["digits8"]
    assert entry["sha256"] == sha256_of(tmp_path / "digits8.npz")
    assert entry["heldout_accuracy"] > 0.5
    assert config_of(entry["network"]) == network.config
    assert isinstance(network, Extractor)
