"""Where images come from, and one line for each that cannot be scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from study.sample import Samples, write_for_adm
from study.score.pictures import Pictures, read


def save_pngs(folder: Path, images: Tensor) -> None:
    for number, image in enumerate(images):
        file = folder / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(file)


def test_npz_and_folder_and_adm_hold_the_same_images(tmp_path: Path, photos: Tensor) -> None:
    labels = torch.arange(24) % 5
    np.savez(tmp_path / "ours.npz", images=photos.numpy(), labels=labels.numpy())
    write_for_adm(tmp_path / "adm.npz", Samples(photos, labels))
    save_pngs(tmp_path / "folder" / "deep", photos)
    ours, adm, folder = (read(str(tmp_path / name)) for name in ("ours.npz", "adm.npz", "folder"))
    for one in (ours, adm, folder):
        assert torch.equal(one.images, photos)
        assert one.sha256 == ours.sha256
    assert ours.labels is not None
    assert adm.labels is not None
    assert torch.equal(ours.labels, labels)
    assert torch.equal(adm.labels, labels)


def test_grey_folder(tmp_path: Path, photos: Tensor) -> None:
    save_pngs(tmp_path, photos[:3, :1])
    assert torch.equal(read(str(tmp_path)).images, photos[:3, :1])


def test_embedded_data_by_name() -> None:
    reference, heldout = read("digits8"), read("digits8/heldout", count=50)
    assert (len(reference), len(heldout)) == (400, 50)
    assert reference.data == "digits8"


def bad_inputs(folder: Path, photos: Tensor) -> dict[str, str]:
    """{source: what the message must say}"""
    floats = photos.numpy() / 100.0
    np.savez(folder / "float.npz", images=floats)
    np.savez(folder / "unknown.npz", pictures=photos.numpy())
    np.savez(folder / "pickle.npz", images=np.array([{"not": "pixels"}], dtype=object))
    np.savez(folder / "labels.npz", images=photos.numpy(), labels=np.arange(3))
    (folder / "noise.npz").write_bytes(b"not an archive")
    (folder / "empty").mkdir()
    (folder / "picture.txt").write_text("no")
    save_pngs(folder / "mixed", photos[:2])
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "mixed" / "zz.png")
    (folder / "torn").mkdir()
    (folder / "torn" / "a.png").write_bytes(b"\x89PNG\r\n")
    (folder / "palette").mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).convert("P").save(folder / "palette" / "a.png")
    return {
        "float.npz": r"float64 in \[0, 2\.5",
        "unknown.npz": "pictures",
        "pickle.npz": "Object arrays cannot be loaded",
        "labels.npz": "one per image",
        "noise.npz": "cannot be read",
        "empty": r"\.png files",
        "picture.txt": "npz",
        "mixed": "zz.png is 3 x 9 x 9 but 0000.png is 3 x 32 x 32",
        "torn": "not a whole PNG",
        "palette": "mode='P'",
        "nowhere": "a file, a folder, a run",
    }


def test_bad_inputs_are_one_line_each(tmp_path: Path, photos: Tensor) -> None:
    for source, message in bad_inputs(tmp_path, photos).items():
        with pytest.raises(ValueError, match=message) as caught:
            read(str(tmp_path / source))
        assert "\n" not in str(caught.value)


def test_sha256_is_of_pixels_and_shape(photos: Tensor) -> None:
    first = Pictures("a", photos).sha256
    changed = photos.clone()
    changed[0, 0, 0, 0] ^= 1
    assert Pictures("b", photos).sha256 == first
    assert Pictures("a", changed).sha256 != first
    assert Pictures("a", photos.reshape(24, 3, 16, 64)).sha256 != first
