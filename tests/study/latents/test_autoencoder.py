"""The autoencoder gives what diffusers gives, in slices; what is none is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from study.data.images import to_uint8
from study.latents.autoencoder import load_autoencoder
from tests.study.latents.tiny import save_autoencoder


def test_decoding_is_diffusers_rounded_whatever_the_batch(autoencoder: Path) -> None:
    """Eleven images go through in slices of eight; the last alone gives the same."""
    from diffusers import AutoencoderKL

    ours, theirs = load_autoencoder(str(autoencoder)), AutoencoderKL.from_pretrained(str(autoencoder))
    assert (ours.channels, ours.factor, ours.scale) == (4, 8, 0.18215)
    latents = torch.randn(11, 4, 8, 8)
    decoded = ours.decode(latents)
    with torch.no_grad():
        expected = to_uint8(theirs.decode(latents / 0.18215).sample)
    assert (decoded.int() - expected.int()).abs().max() <= 1
    assert (ours.decode(latents[10:]).int() - decoded[10:].int()).abs().max() <= 1
    assert load_autoencoder(str(autoencoder), scale=1.0).scale == 1.0


def test_a_digest_is_of_the_weights_and_not_of_their_place(autoencoder: Path, tmp_path: Path) -> None:
    same, other = save_autoencoder(tmp_path / "same"), save_autoencoder(tmp_path / "other", seed=1)
    digest = load_autoencoder(str(autoencoder)).digest()
    assert load_autoencoder(str(same)).digest() == digest
    assert load_autoencoder(str(other)).digest() != digest


def test_it_is_found_inside_a_pipeline(tmp_path: Path) -> None:
    save_autoencoder(tmp_path / "pipeline" / "vae")
    assert load_autoencoder(str(tmp_path / "pipeline")).channels == 4


def test_a_quantised_one_decodes_and_does_not_encode(tmp_path: Path) -> None:
    """Latent diffusion's for ImageNet at a factor of 4."""
    from diffusers import VQModel

    network = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        latent_channels=3,
        num_vq_embeddings=16,
        scaling_factor=1.0,
    ).eval()
    network.save_pretrained(str(tmp_path / "vq"))
    ours = load_autoencoder(str(tmp_path / "vq"))
    assert (ours.channels, ours.factor, ours.scale) == (3, 4, 1.0)
    latents = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = to_uint8(network.decode(latents).sample)
    assert torch.equal(ours.decode(latents), expected)
    with pytest.raises(ValueError, match="autoencoder='VQModel' is not valid: must be AutoencoderKL"):
        ours.moments(torch.zeros(1, 3, 32, 32))


def test_what_is_no_autoencoder_is_refused_in_one_line(autoencoder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"must be a folder with config\.json and weights"):
        load_autoencoder(str(tmp_path / "empty"))
    config = json.loads((autoencoder / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "empty" / "config.json").write_text(json.dumps({**config, "_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="_class_name='UNet2DModel' is not valid: must be AutoencoderKL or VQModel"):
        load_autoencoder(str(tmp_path / "empty"))
    (tmp_path / "empty" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"cannot be loaded: ") as refusal:
        load_autoencoder(str(tmp_path / "empty"))
    assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match=r"scale=0\.0 is not valid"):
        load_autoencoder(str(autoencoder), scale=0.0)
