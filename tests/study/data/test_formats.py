"""Every format, in miniature: the images are those that were written, with their labels; what is wrong is named."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from study.data import SPLITS, load
from study.data.decode import DamagedImageError, centre_crop, face_crop
from study.data.listing import in_order
from study.data.streamed import StreamedSet
from tests.study.data import made
from tests.study.data.reading import config_of, everything, named, read_all, shown

MAKERS: dict[str, Callable[[Path], Path]] = {
    "imagenet": lambda folder: made.imagenet(folder / "imagenet"),
    "folder": lambda folder: made.flat(folder / "flat"),
    "zip": lambda folder: made.edm_zip(folder / "edm.zip"),
    "webdataset": lambda folder: made.webdataset(folder / "shards"),
    "lmdb": lambda folder: made.lsun(folder / "lsun") / "church_outdoor_train_lmdb",
    "lsun_church": lambda folder: made.lsun(folder / "lsun"),
    "lsun_bedroom": lambda folder: made.lsun(folder / "lsun", name="bedroom_train_lmdb"),
    "cifar10": lambda folder: made.cifar10(folder / "cifar"),
    "celeba": lambda folder: made.celeba(folder / "celeba"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_format_is_a_source(tmp_path: Path, name: str) -> None:
    config = config_of(name, MAKERS[name](tmp_path))
    for split in SPLITS:
        source = load(config, split)
        assert len(source) == config.images(split)
        assert source.shape == (3, config.size, config.size)
        assert (source.name, source.classes, source.latent_factor) == (name, config.classes, 1)
        x0 = source.batch(torch.arange(len(source)))
        assert (x0.dtype, tuple(x0.shape)) == (torch.float32, (len(source), *source.shape))
        assert -1 <= x0.min() < 0 < x0.max() <= 1
        assert (source.labels.dtype, len(source.labels)) == (torch.int64, len(source))
        assert 0 <= source.labels.min() <= source.labels.max() <= max(source.classes - 1, 0)
        mirrored = torch.arange(len(source)) % 2 == 0
        expected = torch.where(mirrored[:, None, None, None], x0.flip(-1), x0)
        assert torch.equal(source.batch(torch.arange(len(source)), mirrored), expected)


@pytest.mark.parametrize("name", MAKERS)
def test_no_image_is_in_two_splits_and_all_are_in_one(tmp_path: Path, name: str) -> None:
    splits = everything(name, MAKERS[name](tmp_path))
    images = [image.tobytes() for source in splits.values() for image in shown(source)]
    assert len(set(images)) == len(images) == {"imagenet": 36, "cifar10": 60, "celeba": 12}.get(name, 40)


@pytest.mark.parametrize("name", MAKERS)
def test_a_second_reading_is_the_same_and_another_seed_deals_otherwise(tmp_path: Path, name: str) -> None:
    path = MAKERS[name](tmp_path)
    first = {split: source.sha256 for split, source in everything(name, path).items()}
    load.cache_clear()
    assert {split: source.sha256 for split, source in everything(name, path).items()} == first
    other = load(config_of(name, path, seed=1), "train")
    assert other.sha256 != first["train"]


@pytest.mark.parametrize("name", ["imagenet", "zip", "webdataset", "cifar10"])
def test_labels_can_be_left_out(tmp_path: Path, name: str) -> None:
    path = MAKERS[name](tmp_path)
    with_labels, without = load(config_of(name, path), "train"), load(config_of(name, path, classes=0), "train")
    assert with_labels.labels.any()
    assert (without.classes, int(without.labels.max())) == (0, 0)
    assert np.array_equal(shown(with_labels), shown(without))
    assert with_labels.sha256 != without.sha256


def test_imagenets_classes_are_the_sorted_synsets(tmp_path: Path) -> None:
    path = made.imagenet(tmp_path, synsets=["n02084071", "n15075141", "n01440764"])
    for split, source in everything("imagenet", path).items():
        assert isinstance(source, StreamedSet)
        for number, label in zip(source.numbers, source.labels.tolist(), strict=True):
            name = source.listing.names[number]
            assert name.split("/")[0] == ("train" if split == "train" else "val")
            assert name.split("/")[1] == sorted(made.SYNSETS)[label]


@pytest.mark.parametrize("where", ["", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC"])
def test_imagenet_is_found_as_it_is_unpacked(tmp_path: Path, where: str) -> None:
    made.imagenet(tmp_path / where)
    config = config_of("imagenet", tmp_path)
    assert (config.count, config.heldout, config.reference, config.classes) == (24, 6, 6, 3)
    inner = config_of("imagenet", tmp_path / where / "train")
    assert (inner.count, inner.heldout, inner.reference, inner.classes) == (21, 1, 2, 3)


def test_kaggles_validation_images_get_their_classes_from_its_table(tmp_path: Path) -> None:
    made.imagenet(tmp_path / "Data/CLS-LOC", apart=0)
    names = {f"ILSVRC2012_val_{i:08d}": made.SYNSETS[i % 3] for i in range(6)}
    made.write(tmp_path / "Data/CLS-LOC/val", {f"{name}.JPEG": made.jpeg(i) for i, name in enumerate(names)})
    rows = [f"{name},{synset} 1 2 3 4 {synset} 5 6 7 8" for name, synset in names.items()]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]))
    source = load(config_of("imagenet", tmp_path), "heldout")
    assert isinstance(source, StreamedSet)
    for number, label in zip(source.numbers, source.labels.tolist(), strict=True):
        assert names[Path(source.listing.names[number]).stem] == made.SYNSETS[label]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda path: made.write(path, {"train/dogs/1.JPEG": b""}), r"train/dogs is not named after a synset"),
        (lambda path: made.write(path, {"train/1.JPEG": b""}), r"train has no class folders such as n01440764"),
        (lambda path: made.write(made.imagenet(path, apart=0), {"val/1.JPEG": b""}), r"val has no class folders .*csv"),
        (lambda path: made.imagenet(path, each=0, apart=0).mkdir() or path, r"holds? no|has no"),
        (
            lambda path: made.write(made.imagenet(path), {"val/n99999999/1.JPEG": made.jpeg(0)}),
            r"val/n99999999/1.JPEG is of a class that no training image is of",
        ),
        (
            lambda path: made.write(made.imagenet(path), {"train/loose.JPEG": made.jpeg(0)}),
            r"train/loose.JPEG lies beside class folders such as n01440764/",
        ),
    ],
)
def test_what_is_no_imagenet_is_told_in_a_line(tmp_path: Path, build: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        config_of("imagenet", build(tmp_path / "set"))
    assert "\n" not in str(refusal.value)


def test_a_folder_with_class_folders_is_labelled_by_them(tmp_path: Path) -> None:
    made.write(
        tmp_path, {f"{name}/{i}.png": made.encoded(made.picture(i)) for name in ("cat", "ant") for i in range(9)}
    )
    source = load(config_of("folder", tmp_path), "train")
    assert isinstance(source, StreamedSet)
    assert source.classes == 2
    names = [source.listing.names[number] for number in source.numbers]
    assert source.labels.tolist() == [int(name.startswith("cat")) for name in names]


def test_a_folder_with_parts_trains_on_one_and_keeps_the_other(tmp_path: Path) -> None:
    made.flat(tmp_path / "train", 9)
    made.flat(tmp_path / "val", 4)
    splits = everything("folder", tmp_path)
    assert all(name.startswith("train/") for name in named(splits["train"]))
    assert all(name.startswith("val/") for split in ("heldout", "reference") for name in named(splits[split]))


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_edms_dataset_json_gives_the_labels(tmp_path: Path, kind: str) -> None:
    path = made.edm_zip(tmp_path / "edm.zip")
    if kind == "folder":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path / "edm")
        path = tmp_path / "edm"
    config = config_of(kind, path)
    assert config.classes == 4
    source = load(config, "train")
    assert isinstance(source, StreamedSet)
    for name, pixels in named(source).items():
        index = int(Path(name).stem.removeprefix("img"))
        np.testing.assert_array_equal(pixels, np.asarray(made.picture(index, 16, 16)))
    labels = [int(Path(source.listing.names[n]).stem.removeprefix("img")) % 4 for n in source.numbers]
    assert source.labels.tolist() == labels


def test_a_zip_without_labels_has_none_whatever_its_folders(tmp_path: Path) -> None:
    assert config_of("zip", made.edm_zip(tmp_path / "edm.zip", labels=None)).classes == 0


def test_a_folder_whose_dataset_json_says_so_has_none_either(tmp_path: Path) -> None:
    with zipfile.ZipFile(made.edm_zip(tmp_path / "edm.zip", labels=None)) as archive:
        archive.extractall(tmp_path / "edm")
    assert config_of("folder", tmp_path / "edm").classes == 0


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zips_stored_and_deflated_hold_the_same(tmp_path: Path, method: int) -> None:
    source = load(config_of("zip", made.edm_zip(tmp_path / "edm.zip", 10, method=method)), "train")
    for name, pixels in named(source).items():
        expected = np.asarray(made.picture(int(Path(name).stem.removeprefix("img")), 16, 16))
        np.testing.assert_array_equal(pixels, expected)


def test_shards_pair_images_with_their_labels(tmp_path: Path) -> None:
    source = load(config_of("webdataset", made.webdataset(tmp_path / "shards")), "train")
    assert isinstance(source, StreamedSet)
    for (name, pixels), label in zip(named(source).items(), source.labels.tolist(), strict=True):
        index = int(Path(name).stem)
        assert name.startswith(f"train-{index // 10:06d}.tar/")
        assert label == index % 3
        with Image.open(io.BytesIO(made.jpeg(index))) as image:
            np.testing.assert_array_equal(pixels, np.asarray(centre_crop(image.convert("RGB"), 16)))


def test_shards_may_keep_labels_in_json_and_parts_in_their_names(tmp_path: Path) -> None:
    for part, count in (("train", 9), ("val", 5)):
        members = {f"{i}.png": made.encoded(made.picture(i)) for i in range(count)}
        members |= {f"{i}.json": json.dumps({"label": i % 2, "caption": "a"}).encode() for i in range(count)}
        made.shard(tmp_path / f"imagenet_{part}_0000.tar", members)
    config = config_of("webdataset", tmp_path)
    assert (config.count, config.heldout, config.reference, config.classes) == (9, 2, 3, 2)


def test_more_shards_than_can_be_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import study.data.archives as archives

    opened: list[int] = []

    class Counted(archives._Opened):
        def __init__(self, archive: archives.Archive) -> None:
            super().__init__(archive)
            opened.append(1)

        def __del__(self) -> None:
            super().__del__()
            opened.pop()

    monkeypatch.setattr(archives, "_opened", lru_cache(maxsize=3)(Counted))
    for number in range(30):
        made.shard(tmp_path / f"{number:03d}.tar", {"0.jpg": made.jpeg(number)})
    source = load(config_of("webdataset", tmp_path), "train")
    for _ in range(2):
        source.batch(torch.arange(len(source)))
        assert len(opened) <= 3


def test_validation_shards_alone_are_trained_on(tmp_path: Path) -> None:
    made.shard(tmp_path / "val-0.tar", {f"{i}.jpg": made.jpeg(i) for i in range(20)})
    assert config_of("webdataset", tmp_path).count == 17


def test_an_archive_written_anew_is_read_anew(tmp_path: Path) -> None:
    """In one process, under one name."""
    from study.data.archives import zip_place

    first = in_order(zip_place(made.edm_zip(tmp_path / "a.zip", 5)))
    content = first.read(0)
    (tmp_path / "a.zip").unlink()
    other = made.edm_zip(tmp_path / "a.zip", 5, side=20)
    second = in_order(zip_place(other))
    assert second.read(0) != content
    assert first.read(0) == content  # the old file lives as long as it is open


def test_lsuns_images_are_those_of_their_keys(tmp_path: Path) -> None:
    pictures = {f"{i * 2654435761:040x}": np.asarray(centre_crop(made.picture(i, 32, 28), 16)) for i in range(40)}
    for source in everything("lsun_church", made.lsun(tmp_path)).values():
        for name, pixels in named(source).items():
            np.testing.assert_array_equal(pixels, pictures[name])


def test_celebas_partition_and_face_are_the_recipes(tmp_path: Path) -> None:
    splits = everything("celeba", made.celeba(tmp_path))
    assert sorted(named(splits["train"])) == [f"{i:06d}.jpg" for i in range(1, 7)]
    for name, pixels in named(splits["train"]).items():
        with Image.open(tmp_path / "img_align_celeba" / name) as image:
            np.testing.assert_array_equal(pixels, np.asarray(face_crop(image, 64)))


def test_a_face_that_is_not_aligned_is_refused_by_name(tmp_path: Path) -> None:
    made.celeba(tmp_path, partition=False)
    (tmp_path / "img_align_celeba/000003.jpg").write_bytes(made.jpeg(0, 178, 200))
    with pytest.raises(DamagedImageError, match=r"000003\.jpg is 178 x 200: must be 178 x 218"):
        read_all("celeba", tmp_path)


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, which the official batches are full of."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_python2_string(self, text: bytes) -> None:
        self.write(b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<i", len(text)) + text)
        self.memoize(text)

    dispatch[bytes] = save_python2_string


def test_cifars_batches_load_as_python_2_pickled_them(tmp_path: Path) -> None:
    path = made.cifar10(tmp_path)
    expected = {split: (shown(source), source.labels) for split, source in everything("cifar10", path).items()}
    for file in (path / "cifar-10-batches-py").iterdir():
        held = pickle.loads(file.read_bytes())
        written = io.BytesIO()
        Python2Pickler(written, protocol=2).dump(held)
        file.write_bytes(written.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
        assert b"_codecs" not in file.read_bytes()
    from study.data.cifar10 import read_batches

    read_batches.cache_clear()
    load.cache_clear()
    for split, (images, labels) in expected.items():
        source = load(config_of("cifar10", path), split)
        assert np.array_equal(shown(source), images)
        assert torch.equal(source.labels, labels)


def test_cifars_test_batch_is_never_trained_on(tmp_path: Path) -> None:
    splits = everything("cifar10", made.cifar10(tmp_path))
    test = {np.asarray(made.picture(5000 + i, 32, 32)).tobytes() for i in range(10)}
    kept = {image.tobytes() for split in ("heldout", "reference") for image in shown(splits[split])}
    assert kept == test
