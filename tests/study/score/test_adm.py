"""Our sample batches keep to what ADM's evaluator can read, and its Fréchet distance is ours.

It takes the member `arr_0.npy` out of the archive as a stream: magic, header, then 64 images' bytes at a time.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from study.sample import Samples
from study.sample_files import write_for_adm
from study.score.pictures import read


def streamed(path: Path, batch: int) -> Iterator[np.ndarray]:
    """The images as a reader without the rest of numpy sees them; what it could not read fails here."""
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
        assert np.lib.format.read_magic(member) in ((1, 0), (2, 0))
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        assert not fortran  # images would come out transposed
        assert not dtype.hasobject
        assert dtype == np.uint8
        assert len(shape) == 4
        assert shape[-1] == 3  # the network's placeholder is N x H x W x 3
        for start in range(0, shape[0], batch):
            count = min(batch, shape[0] - start)
            content = member.read(count * int(np.prod(shape[1:])))
            yield np.frombuffer(content, dtype).reshape(count, *shape[1:])
        assert member.read() == b""


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_are_read_as_a_stream(tmp_path: Path, channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (150, channels, 6, 10), dtype=torch.uint8, generator=generator)
    path = tmp_path / "adm.npz"
    write_for_adm(path, Samples(images, torch.arange(150) % 10))
    batches = list(streamed(path, 64))
    assert [len(each) for each in batches] == [64, 64, 22]
    expected = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(np.concatenate(batches), expected)


def test_samples_hold_no_statistics_and_no_pickle(tmp_path: Path, photos: Tensor) -> None:
    """Any array called mu would be taken for the statistics of the samples."""
    path = tmp_path / "adm.npz"
    write_for_adm(path, Samples(photos, torch.arange(24)))
    with np.load(path, allow_pickle=False) as file:
        assert set(file.files) == {"arr_0", "arr_1"}
        np.testing.assert_array_equal(file["arr_1"], np.arange(24))
    write_for_adm(path, Samples(photos, None))
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["arr_0.npy"]
        assert archive.testzip() is None


def test_a_reference_batch_is_read_as_it_is(tmp_path: Path, photos: Tensor) -> None:
    """Statistics in float32 or float64, with the images that precision and recall are of."""
    rng = np.random.default_rng(0)
    mean, root = rng.standard_normal(5), rng.standard_normal((5, 5))
    arrays = {"mu": mean.astype(np.float32), "sigma": root @ root.T, "mu_s": mean[:3], "sigma_s": np.eye(3)}
    np.savez(tmp_path / "VIRTUAL.npz", arr_0=photos.permute(0, 2, 3, 1).numpy(), **arrays)  # type: ignore[arg-type]
    found = read(str(tmp_path / "VIRTUAL.npz"))
    assert torch.equal(found.images, photos)
    np.testing.assert_allclose(found.statistics["2048"].mean, mean, rtol=1e-6)
    np.testing.assert_array_equal(found.statistics["spatial"].full, np.eye(3))
    assert found.statistics["2048"].n == 0
