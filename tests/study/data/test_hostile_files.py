"""Files that are damaged, malicious or no such set: nothing runs, nothing is unpacked, and what is wrong is named."""

import gzip
import pickle
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from study.data import SPLITS, load
from study.data.decode import DamagedImageError
from study.data.listing import in_order
from tests.study.data import made
from tests.study.data.reading import config_of, read_all


class Evil:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_code_is_refused_and_does_not(tmp_path: Path, protocol: int) -> None:
    made.cifar10(tmp_path)
    victim = tmp_path / "touched"
    held = {b"data": Evil(victim), b"labels": [0]}
    (tmp_path / "cifar-10-batches-py/data_batch_3").write_bytes(pickle.dumps(held, protocol))
    with pytest.raises(
        ValueError, match=r"data_batch_3 is no CIFAR-10 batch: holds (pathlib|__builtin__|builtins|copy)"
    ):
        config_of("cifar10", tmp_path)
    assert not victim.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cos\nsystem\n(S'touch x'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n(tR.",
        b"cnumpy\nndarray.__class__\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
    ],
)
def test_no_other_name_passes_the_unpickler(tmp_path: Path, opcodes: bytes) -> None:
    made.cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(opcodes)
    with pytest.raises(ValueError, match=r"test_batch is no CIFAR-10 batch: holds \S+, which no CIFAR-10 batch does"):
        config_of("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, "N x 3072 bytes and N labels"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]}, "N x 3072 bytes and N labels from 0 to 9"),
        ({b"data": np.zeros((2, 3072), np.float32), b"labels": [0, 1]}, "N x 3072 bytes"),
        ({b"data": [[0] * 3072], b"labels": [0]}, "N x 3072 bytes"),
        ({b"labels": [0]}, "data"),
        ([1, 2], "list"),
    ],
)
def test_batches_of_anything_else_are_refused(tmp_path: Path, held: object, message: str) -> None:
    made.cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/data_batch_1").write_bytes(pickle.dumps(held))
    with pytest.raises(ValueError, match=rf"data_batch_1 is no CIFAR-10 batch: .*{message}"):
        config_of("cifar10", tmp_path)


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    made.cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/data_batch_4").unlink()
    with pytest.raises(ValueError, match=r"must be cifar-10-batches-py or the folder above, and lacks data_batch_4$"):
        config_of("cifar10", tmp_path)


def with_member(file: Path, name: str, content: bytes) -> Path:
    made.edm_zip(file, labels=None)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(name, content)
    return file


def test_names_in_an_archive_lead_nowhere(tmp_path: Path) -> None:
    """Nothing is unpacked: a name is only a name."""
    inside = tmp_path / "inside"
    inside.mkdir()
    file = with_member(inside / "a.zip", "../../escape.png", made.encoded(made.picture(0)))
    made.shard(inside / "b.tar", {"/etc/absolute.png": made.encoded(made.picture(0)), "../up.png": made.jpeg(1)})
    before = sorted(tmp_path.rglob("*"))
    for name, path in (("zip", file), ("webdataset", inside / "b.tar")):
        config = config_of(name, path, heldout=1, reference=1) if name == "zip" else None
        listed = load(config, "train") if config else None
        assert listed is None or len(listed.batch(torch.arange(len(listed)))) == 39
    assert sorted(tmp_path.rglob("*")) == before


def test_a_zip_bomb_stops_at_the_size_it_declares(tmp_path: Path) -> None:
    """A member that unpacks to far more than the archive's list says."""
    file = with_member(tmp_path / "a.zip", "bomb.png", b"\0" * 50_000_000)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb2.png", b"\0" * 50_000_000)
    content = bytearray(file.read_bytes())
    place = content.rfind(b"bomb2.png") - 46  # its entry in the list at the end
    content[place + 24 : place + 28] = struct.pack("<I", 1000)
    file.write_bytes(content)
    from study.data.archives import zip_place

    listing = in_order(zip_place(file))
    with pytest.raises(DamagedImageError, match=r"bomb2\.png cannot be read: its checksum does not fit"):
        listing.read(listing.names.index("bomb2.png"))


def test_images_that_claim_to_be_huge_are_refused_by_name(tmp_path: Path) -> None:
    file = with_member(tmp_path / "a.zip", "huge.png", b"x")
    content = bytearray(file.read_bytes())
    place = content.rfind(b"huge.png") - 46
    content[place + 24 : place + 28] = struct.pack("<I", 2**31)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"huge\.png has 2,147,483,648 bytes: more than any image"):
        config_of("zip", file)


def flip_byte(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 0x55
    file.write_bytes(content)


def test_a_flipped_byte_in_a_zip_is_found_by_its_checksum(tmp_path: Path) -> None:
    file = made.edm_zip(tmp_path / "a.zip")
    flip_byte(file, 300)
    with pytest.raises(DamagedImageError, match=r"a\.zip: 00000/img00000000\.png cannot be read: its checksum"):
        read_all("zip", file)


FIRST = "00000/img00000000.png"  # of EDM's zips
NESTED = b"[" * 100_000 + b"]" * 100_000
LONG = b'{"labels": [["a.jpg", ' + b"9" * 5000 + b"]]}"


def zip_of_labels(file: Path, labels: bytes) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jpg", made.jpeg(0))
        archive.writestr("dataset.json", labels)


@pytest.mark.parametrize(
    ("name", "build", "message"),
    [
        ("zip", lambda path: path, r"path='.*' is not valid: must be a file or folder that exists"),
        ("zip", lambda path: path.write_bytes(b"PK") and path, r"is no whole zip file"),
        ("zip", lambda path: path.mkdir() or path, r"must be a zip file"),
        ("zip", lambda path: made.edm_zip(path, 0), r"holds no images"),
        (
            "zip",
            lambda path: made.edm_zip(path, 3, labels=[["00000/img00000000.png", 0]]),
            r"no label for 00000/img00000001",
        ),
        ("zip", lambda path: made.edm_zip(path, 3, labels=[["a.png", [0.5]]]), r"dataset\.json is not valid: must be"),
        ("zip", lambda path: made.edm_zip(path, 3, labels={"a": 1}), r"dataset\.json is not valid: must be"),
        ("zip", lambda path: made.edm_zip(path, 4, method=zipfile.ZIP_LZMA), r"packed by method 14: must be stored or"),
        ("folder", lambda path: path.mkdir() or path, r"holds no images \(\.bmp"),
        ("folder", lambda path: path.write_bytes(b"") or path, r"must be a folder of images"),
        ("lmdb", lambda path: path.mkdir() or path, r"must be a folder with data\.mdb"),
        ("lmdb", lambda path: made.write(path, {"data.mdb": b"\0" * 9999}), r"is no LMDB database"),
        ("celeba", lambda path: path.mkdir() or path, r"holds no images"),
        ("webdataset", lambda path: path.mkdir() or path, r"must be a \.tar file or a folder of them"),
        ("webdataset", lambda path: made.write(path, {"a.tar": b"x" * 2000}), r"a\.tar is no whole tar file"),
        ("webdataset", lambda path: made.write(path, {"a.tar.gz": gzip.compress(b"")}), r"a\.tar\.gz is compressed"),
        ("webdataset", lambda path: made.webdataset(path, label=lambda i: b"cat"), r"000000\.cls is no class"),
        (
            "webdataset",
            lambda path: made.webdataset(path, label=lambda i: b"-1"),
            r"is of class -1: must be 0 to 999,999",
        ),
        (
            "webdataset",
            lambda path: made.webdataset(path, label=lambda i: b"9" * 23),
            r"is of class 9{23}: must be 0 to",
        ),
        ("webdataset", lambda path: made.webdataset(path, label=lambda i: b"9" * 5000), r"000000\.cls is no class"),
        ("webdataset", lambda path: made.webdataset(path, label=lambda i: b"1000000"), r"is of class 1000000: must be"),
        (
            "webdataset",
            lambda path: made.shard(path / "a.tar", {"0.jpg": made.jpeg(0), "0.json": NESTED}),
            r"a\.tar: 0\.json cannot be read: it is nested too deeply",
        ),
        (
            "zip",
            lambda path: made.edm_zip(path, 1, labels=[[FIRST, 10**25]]),
            rf"{FIRST} is of class 10{{25}}: must be",
        ),
        (
            "zip",
            lambda path: made.edm_zip(path, 1, labels=[[FIRST, 10**12]]),
            rf"{FIRST} is of class 10{{12}}: must be",
        ),
        (
            "zip",
            lambda path: zip_of_labels(path, NESTED),
            r"set: dataset\.json cannot be read: it is nested too deeply",
        ),
        ("zip", lambda path: zip_of_labels(path, LONG), r"set: dataset\.json cannot be read: Exceeds the limit"),
        (
            "folder",
            lambda path: made.write(path, {"a.jpg": made.jpeg(0), "dataset.json": NESTED}),
            r"set/dataset\.json cannot be read: it is nested too deeply",
        ),
        (
            "folder",
            lambda path: made.write(path, {"a.jpg": made.jpeg(0), "dataset.json": b'{"labels": [["a.jpg", -1]]}'}),
            r"a\.jpg is of class -1: must be 0 to 999,999",
        ),
    ],
)
def test_what_is_no_such_set_is_told_in_a_line(
    tmp_path: Path, name: str, build: Callable[[Path], Any], message: str
) -> None:
    path = tmp_path / "set"
    build(path)
    with pytest.raises(ValueError, match=message) as refusal:
        config_of(name, path)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value) or "dataset.json" in str(refusal.value)


def test_some_labels_and_some_without_is_refused_by_name(tmp_path: Path) -> None:
    made.shard(tmp_path / "a.tar", {"0.jpg": made.jpeg(0), "0.cls": b"1", "1.jpg": made.jpeg(1)})
    with pytest.raises(ValueError, match=r"a\.tar/1\.jpg has no label, and a\.tar/0\.jpg has one"):
        config_of("webdataset", tmp_path)


def test_links_and_cut_members_of_a_shard_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    with tarfile.open(file, "w") as archive:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ValueError, match=r"a\.tar: 0\.png is a link or device: must be a file"):
        config_of("webdataset", tmp_path)
    made.shard(file, {"0.png": made.encoded(made.picture(0)), "1.png": made.encoded(made.picture(1, 200, 200))})
    file.write_bytes(file.read_bytes()[:9000])
    with pytest.raises(ValueError, match=r"a\.tar ends within 1\.png"):
        config_of("webdataset", tmp_path)


def test_a_cut_database_is_refused_before_it_kills_the_process(tmp_path: Path) -> None:
    path = made.lsun(tmp_path) / "church_outdoor_train_lmdb"
    file = path / "data.mdb"
    used = len(file.read_bytes().rstrip(b"\0"))
    with file.open("r+b") as opened:
        opened.truncate(used // 2)
    with pytest.raises(ValueError, match=r"data\.mdb is cut off"):
        config_of("lmdb", path)


def test_a_folder_that_leads_into_itself_is_refused(tmp_path: Path) -> None:
    made.flat(tmp_path / "a", 3)
    (tmp_path / "a/loop").symlink_to(tmp_path / "a")
    with pytest.raises(ValueError, match=r"loop leads back to a folder it lies in"):
        config_of("folder", tmp_path / "a")


def test_names_stay_on_one_line(tmp_path: Path) -> None:
    made.flat(tmp_path, 5)
    (tmp_path / "a\n\x1b[31mred.png").write_bytes(b"no image")
    with pytest.raises(DamagedImageError, match=re.escape("a??[31mred.png is not an image")):
        read_all("folder", tmp_path)


def test_hidden_files_and_a_macs_leavings_are_no_images(tmp_path: Path) -> None:
    made.flat(tmp_path / "flat", 5)
    made.write(tmp_path / "flat", {".hidden.png": b"", ".thumbs/1.png": b"", "notes.txt": b""})
    config = config_of("folder", tmp_path / "flat")
    assert sum(config.images(split) for split in SPLITS) == 5
    file = with_member(tmp_path / "a.zip", "__MACOSX/._img.png", b"")
    assert sum(config_of("zip", file).images(split) for split in SPLITS) == 40
