"""Where images come from, and one line for each that cannot be scored."""

from __future__ import annotations

import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from study.data import DataConfig, load
from study.sample import Samples
from study.sample_files import write_for_adm
from study.score.frechet import Moments
from study.score.pictures import Pictures, held_out_from, of_data, read


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


class Mark:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def deep_png() -> bytes:
    """2 x 2 RGB of 16 bits, which Pillow opens as 8-bit RGB without a word."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes(range(12))) * 2)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


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
    grey = Image.fromarray(np.zeros((9, 9), np.uint8))
    for mode in ("P", "RGBA", "LA", "1", "I;16"):
        (folder / mode).mkdir()
        Image.fromarray(np.zeros((9, 9), np.uint16)).save(folder / mode / "a.png") if mode == "I;16" else grey.convert(
            mode
        ).save(folder / mode / "a.png")
    for name, content in {"deep": deep_png(), "cut": deep_png()[:40]}.items():
        (folder / name).mkdir()
        (folder / name / "a.png").write_bytes(content)
    (folder / "clear").mkdir()
    grey.save(folder / "clear" / "a.png", transparency=0)
    save_pngs(folder / "lossy", photos[:2])
    grey.save(folder / "lossy" / "c.jpg")
    np.savez(folder / "text.npz", images=np.array(["a", "b"]))
    np.savez(folder / "none.npz", images=np.zeros((0, 1, 4, 4)))
    np.savez(folder / "wide.npz", images=photos.numpy().astype(np.int64))
    np.savez(folder / "flat.npz", arr_0=np.uint8(3))
    np.savez(folder / "half.npz", images=photos.numpy(), labels=np.full(24, 0.5))
    np.savez(folder / "onehot.npz", arr_0=photos.movedim(1, -1).numpy(), arr_1=np.zeros((24, 10), np.int64))
    np.savez(folder / "nan.npz", arr_0=photos.movedim(1, -1).numpy(), mu=np.full(3, np.nan), sigma=np.eye(3))
    np.savez_compressed(folder / "torn.npz", images=photos.numpy())
    whole = (folder / "torn.npz").read_bytes()
    (folder / "torn.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "flipped.npz").write_bytes(whole[:2000] + bytes([whole[2000] ^ 255]) + whole[2001:])
    with (folder / "array.npz").open("wb") as file:
        np.save(file, photos.numpy())
    (folder / "evil.npz").write_bytes(pickle.dumps(Mark(folder / "executed")))
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
        "P": "mode='P'",
        "RGBA": "mode='RGBA'",
        "LA": "mode='LA'",
        "1": "mode='1'",
        "I;16": "mode='I;16'",
        "deep": "bits=16",
        "cut": "not a whole PNG",
        "clear": "mode='transparency'",
        "lossy": "c.jpg.*PNG throughout",
        "text.npz": "images is an array of <U1: must be uint8",
        "none.npz": r"float64.* is not valid: must be uint8",
        "wide.npz": "torch.int64",
        "flat.npz": "images.shape",
        "half.npz": "labels='float64",
        "onehot.npz": "one integer per image",
        "nan.npz": "finite statistics",
        "torn.npz": "cannot be read as npz",
        "flipped.npz": "cannot be read as npz",
        "array.npz": "cannot be read as npz",
        "evil.npz": "cannot be read as npz",
        "nowhere": "a file, a folder, a run",
    }


def test_bad_inputs_are_one_line_each(tmp_path: Path, photos: Tensor) -> None:
    for source, message in bad_inputs(tmp_path, photos).items():
        with pytest.raises(ValueError, match=message) as caught:
            read(str(tmp_path / source))
        assert "\n" not in str(caught.value)
        assert source in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_sha256_is_of_pixels_and_shape(photos: Tensor) -> None:
    first = Pictures("a", photos).sha256
    changed = photos.clone()
    changed[0, 0, 0, 0] ^= 1
    assert Pictures("b", photos).sha256 == first
    assert Pictures("a", changed).sha256 != first
    assert Pictures("a", photos.reshape(24, 3, 16, 64)).sha256 != first


def test_sha256_is_of_the_whole_statistics(photos: Tensor) -> None:
    """Two references with one mean are not one reference."""

    def sha(scale: float) -> str:
        return Pictures("a", photos, statistics={"2048": Moments(np.zeros(3), 0, full=scale * np.eye(3))}).sha256

    assert sha(1.0) == sha(1.0)
    assert len({sha(1.0), sha(2.0), Pictures("a", photos).sha256}) == 3


def test_held_out_images_are_of_the_very_data_and_not_in_the_reference() -> None:
    """Another seed or another texture has other held-out images; those of the default would be the wrong floor."""
    config = DataConfig("digits8", seed=3)
    reference = of_data(config, "reference")
    real = held_out_from(reference, 100)
    assert real is not None
    assert torch.equal(real.images, load(config, "heldout").images[:100])
    known = {image.numpy().tobytes() for image in reference.images}
    assert not any(image.numpy().tobytes() in known for image in real.images)
    striped = DataConfig("glyphtex32", texture=0.2, reference=20)
    real = held_out_from(of_data(striped, "reference"), 10)
    assert real is not None
    assert torch.equal(real.images, load(DataConfig("glyphtex32", texture=0.2, heldout=10), "heldout").images)
    against_heldout = held_out_from(read("digits8/heldout"), 1000)
    assert against_heldout is not None
    assert against_heldout.name == "digits8/reference"
    assert len(against_heldout) == 400  # all there are
    assert held_out_from(Pictures("photos", reference.images), 10) is None
