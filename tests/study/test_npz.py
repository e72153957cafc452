"""Archives that no numpy wrote: each was once another exception than the one that says so."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from study.interchange.reading import CheckpointError, read_checkpoint
from study.npz import read_npz_file
from study.sample import load_samples
from study.score.pictures import read_npz

IMAGES = np.zeros((2, 3, 4, 4), np.uint8)


def archive(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def version_64(data: bytes) -> bytes:
    """The directory says that a zip of the far future is needed to read it: NotImplementedError in zipfile."""
    place = data.index(b"PK\x01\x02") + 6
    return data[:place] + b"\x40" + data[place + 1 :]


def encrypted(data: bytes) -> bytes:
    """RuntimeError in zipfile."""
    place = data.index(b"PK\x01\x02") + 8
    return data[:place] + b"\x01" + data[place + 1 :]


def with_text(name: str) -> bytes:
    """A member that is no array: numpy hands out its bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr(f"{name}.npy", b"text")
    return file.getvalue()


DAMAGED = {
    "version": version_64(archive(images=IMAGES)),
    "encrypted": encrypted(archive(images=IMAGES)),
    "text": with_text("images"),
    "empty": b"",
    "array": b"\x93NUMPY",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_archive_is_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(DAMAGED[name])
    for read in (read_npz_file, read_npz):
        with pytest.raises(ValueError, match=r"a\.npz cannot be read as npz: \S") as refusal:
            read(path)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "arrays",
    [{"images": np.zeros((2, 3))}, {"images": IMAGES, "labels": np.zeros(3, np.int64)}, {"labels": np.zeros(2)}],
    ids=["shape", "labels", "none"],
)
def test_a_shard_of_something_else_is_no_samples(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "000000-000002.npz").write_bytes(archive(**arrays))
    with pytest.raises(ValueError, match=r"lacks samples 0\.\.1"):
        load_samples(tmp_path, range(2))


def test_a_torch_file_whose_pickle_takes_from_an_empty_stack(tmp_path: Path) -> None:
    """IndexError in torch's own reader."""
    file = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, file, _use_new_zipfile_serialization=False)
    path = tmp_path / "w.pt"
    path.write_bytes(b"\x80\x02R." + file.getvalue())
    with pytest.raises(CheckpointError, match=r"w\.pt"):
        read_checkpoint(path)
