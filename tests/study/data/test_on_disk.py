"""Sets on disk as configs, ids and batches: what decides them is what the path holds, and never where it lies."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from models import named_config
from study.compose import resolve
from study.config import Seeds, from_dict, run_id, to_dict
from study.data import DataConfig, Found, datasets, load, offered
from study.data.streamed import StreamedSet
from study.diffusion import GaussianConfig, make_process
from study.distributed import Ranks
from study.draws import Draws
from study.run_directory import load_config
from study.train import new_network
from tests.study.data import made

ON_DISK = sorted(name for name, offer in datasets().items() if offer.on_disk)
RUN = ["data=folder", "data.size=16"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made.flat(tmp_path / "images")


def test_the_promised_sets_are_there() -> None:
    promised = {
        "imagenet",
        "lsun_church",
        "lsun_bedroom",
        "cifar10",
        "celeba",
        "folder",
        "zip",
        "webdataset",
        "latents",
    }
    assert promised <= set(ON_DISK)


@pytest.mark.parametrize("name", ON_DISK)
def test_without_a_path_a_set_can_be_planned_with_and_no_more(name: str) -> None:
    config = DataConfig(name)
    offer = offered(config)
    assert offer.counts == (config.images("train"), config.images("heldout"), config.images("reference"))
    assert min(offer.counts) > 0
    with pytest.raises(
        ValueError, match=rf"data\.path=None is not valid: must be where {name} lies: data\.path=\.\.\."
    ):
        load(config, "train")


@pytest.mark.parametrize(
    ("name", "fields", "size", "classes"),
    [
        ("imagenet", {}, (256, 256), 1000),
        ("imagenet", {"size": 64, "classes": 0}, (64, 64), 0),
        ("imagenet", {"size": 512}, (512, 512), 1000),
        ("lsun_church", {}, (256, 256), 0),
        ("cifar10", {"classes": 0}, (32, 32), 0),
        ("celeba", {}, (64, 64), 0),
        ("latents", {"size": 512}, (64, 64), 1000),
    ],
)
def test_a_backbones_shape_is_known_without_the_data(
    name: str, fields: dict[str, Any], size: tuple[int, int], classes: int
) -> None:
    words = [f"data={name}", *(f"data.{key}={value}" for key, value in fields.items()), "backbone=dit-s/2"]
    backbone = resolve(words).backbone
    assert (backbone.size, backbone.classes) == (size, classes)


def test_what_is_left_out_is_found_at_the_path(folder: Path) -> None:
    config = DataConfig("folder", path=str(folder), size=16)
    assert (config.count, config.heldout, config.reference, config.classes) == (34, 2, 4, 0)
    assert len(config.digest or "") == 16
    assert DataConfig("folder", path=str(folder), size=16, heldout=3).count == 33
    assert DataConfig("folder", path=str(folder), size=16, count=5).reference == 4


def test_a_smaller_count_is_a_prefix(folder: Path) -> None:
    whole = load(DataConfig("folder", path=str(folder), size=16), "train")
    few = load(DataConfig("folder", path=str(folder), size=16, count=7), "train")
    index = torch.arange(7)
    assert torch.equal(whole.batch(index), few.batch(index))


def test_the_path_is_no_part_of_the_id_and_what_it_holds_is(folder: Path, tmp_path: Path) -> None:
    def identity(path: Path, *words: str) -> str:
        return run_id(resolve([*RUN, f"data.path={path}", *words]))

    moved, other = tmp_path / "moved", tmp_path / "other"
    shutil.copytree(folder, moved)
    shutil.copytree(folder, other)
    (other / "00003.png").write_bytes(made.encoded(made.picture(99, 25, 20)))
    assert identity(folder) == identity(moved)
    ids = [identity(folder), identity(other), identity(folder, "data.size=8"), identity(folder, "data.seed=1")]
    ids.append(identity(folder, "data.count=30"))
    assert len(set(ids)) == len(ids)


def test_labels_and_names_are_part_of_the_digest(tmp_path: Path) -> None:
    plain = DataConfig("zip", path=str(made.edm_zip(tmp_path / "a.zip", labels=None)))
    labelled = DataConfig("zip", path=str(made.edm_zip(tmp_path / "b.zip")))
    fewer = DataConfig("zip", path=str(made.edm_zip(tmp_path / "c.zip", 39, labels=None)))
    assert len({plain.digest, labelled.digest, fewer.digest}) == 3


def test_a_frozen_config_is_read_without_the_data(folder: Path, tmp_path: Path) -> None:
    config = resolve([*RUN, f"data.path={folder}"])
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(to_dict(config)))
    shutil.rmtree(folder)
    again = load_config(file)
    assert again == config
    assert run_id(again) == run_id(config)
    with pytest.raises(ValueError, match=r"path='.*images' is not valid: must be a file or folder that exists"):
        load(again.data, "train")


def test_configs_frozen_before_there_were_sets_on_disk_can_be_read() -> None:
    tree = to_dict(resolve([]))
    for key in ("path", "size", "classes", "digest"):
        del tree["data"][key]
    assert from_dict(tree) == resolve([])


def test_other_images_than_the_configs_are_refused(folder: Path, tmp_path: Path) -> None:
    config = DataConfig("folder", path=str(folder), size=16)
    other = made.flat(tmp_path / "other", 41)
    moved = DataConfig(**{**vars(config), "path": str(other)})
    with pytest.raises(ValueError, match=r"digest='.*' is not valid: .*other holds other images, of digest '"):
        load(moved, "train")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": "/nowhere"}, r"^path='/nowhere' is not valid: must be a file or folder that exists"),
        ({"size": 0}, "^size=0 is not valid: must be an integer of at least 1"),
        ({"size": "big"}, "^size='big' is not valid"),
        ({"classes": -1}, "^classes=-1 is not valid"),
        ({"classes": 10}, r"^classes=10 is not valid: must be 0: .* has no labels"),
        ({"count": 36}, r"^count=36 is not valid: must be at most 34: 40 less those held out and of the reference"),
        ({"heldout": 0}, "^heldout=0 is not valid: must be an integer of at least 1"),
        ({"digest": "abc"}, r"^digest='abc' is not valid: .* holds other images, of digest '[0-9a-f]{16}'"),
        ({"texture": 0.5}, "^texture=0.5 is not valid: must be left out: folder has no such dial"),
    ],
)
def test_bad_configs_are_refused_by_field(folder: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        DataConfig("folder", **{"path": str(folder), **fields})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("count", [1, 2])
def test_a_set_too_small_for_its_splits_is_refused(tmp_path: Path, count: int) -> None:
    path = made.flat(tmp_path / "few", count)
    with pytest.raises(ValueError, match=r"^path='.*few' is not valid: must be a set with an image for each of its"):
        DataConfig("folder", path=str(path), size=8)


@pytest.mark.parametrize("name", ["path", "size", "classes", "digest"])
def test_embedded_sets_lie_nowhere(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}=.* is not valid: must be left out: digits8 is not on disk"):
        DataConfig("digits8", **{name: {"path": "/", "digest": "a"}.get(name, 1)})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.classes=4", r"data\.classes=4 is not valid: must be 0: .* has no labels"),
        ("data.path=/nowhere", r"data\.path='/nowhere' is not valid"),
        ("data.pth=/nowhere", r"unknown key data\.pth: did you mean data\.path\?"),
        ("backbone.classes=10", r"backbone\.classes=10 does not fit data=folder"),
        ("sample.sampler.guidance=1.5", r"guidance=1\.5 is not valid: .*no null class"),
    ],
)
def test_the_command_line_names_the_key(folder: Path, word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve([*RUN, f"data.path={folder}", word])


@pytest.mark.parametrize(
    "found", [Found(100, 0, 0, ""), Found(1000, 40, 0, ""), Found(3, 0, 0, ""), Found(5, 2, 0, "")]
)
def test_splits_left_out_never_share_an_image(found: Found) -> None:
    counts = found.settle(None, None, None)
    assert min(counts) >= 1
    found.check(counts, "folder")


@pytest.mark.parametrize(
    ("found", "counts", "message"),
    [
        (Found(10, 4, 0, ""), (11, 1, 1), r"count=11 is not valid: must be an integer in 1\.\.10, all that x has"),
        (Found(10, 4, 0, ""), (10, 3, 2), r"heldout=3 is not valid: must be at most 4 with data\.reference=2"),
        (Found(10, 0, 0, ""), (9, 1, 1), r"count=9 is not valid: must be at most 8"),
        (Found(10, 4, 0, "", reference=3), (10, 4, 5), r"reference=5 is not valid: .*1\.\.3"),
    ],
)
def test_splits_that_would_are_refused(found: Found, counts: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found.check(counts, "x")


def source(path: Path, **fields: Any) -> StreamedSet:
    opened = load(DataConfig("folder", path=str(path), size=8, **fields), "train")
    assert isinstance(opened, StreamedSet)
    return opened


def draws(path: Path, flip: bool = True) -> Draws:
    load.cache_clear()
    process = make_process(GaussianConfig(schedule="cosine", variance="fixed_small"))
    return Draws(source(path), process, Seeds(data=0, noise=0, init=0), flip)


NETWORK = new_network(resolve(["data=folder", "data.size=8", "backbone=dit-tiny", "backbone.depth=1"]))


def test_a_batch_depends_on_where_it_is_and_not_on_what_came_before(folder: Path) -> None:
    """So a run resumes in the middle of an epoch by counting, whatever had been decoded ahead."""
    straight = draws(folder)
    batches = {seen: straight.batch(NETWORK, seen, 7) for seen in range(0, 70, 7)}  # two epochs of 34
    for seen in (63, 7, 35, 28, 0):
        again = draws(folder).batch(NETWORK, seen, 7)
        assert torch.equal(again.x0, batches[seen].x0)
        assert torch.equal(again.noise, batches[seen].noise)


def test_every_epoch_shows_every_image_once_flipped_or_not(folder: Path) -> None:
    images = source(folder).batch(torch.arange(34))
    known = {image.numpy().tobytes(): number for number, image in enumerate(images)}
    known |= {image.numpy().tobytes(): number for number, image in enumerate(images.flip(-1))}
    shown = torch.cat([draws(folder).batch(NETWORK, seen, 17).x0 for seen in range(0, 68, 17)])
    order = [known[image.numpy().tobytes()] for image in shown]
    assert sorted(order[:34]) == sorted(order[34:]) == list(range(34))
    assert order[:34] != order[34:]


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_decode_their_share_and_together_the_batch(
    folder: Path, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = draws(folder)
    expected = [whole.batch(NETWORK, seen, 10) for seen in (0, 10, 20)]
    load.cache_clear()
    del whole  # with its threads, before decoding is counted
    decoded: Counter[int] = Counter()
    import study.data.streamed as streamed

    original = streamed.decode
    monkeypatch.setattr(
        streamed, "decode", lambda content, crop, name: (decoded.update([name]), original(content, crop, name))[1]
    )
    parts: list[list[Tensor]] = [[], [], []]
    for rank in range(world_size):
        mine = draws(folder)
        share = Ranks(rank, world_size).share(10)
        for turn, seen in enumerate((0, 10, 20)):
            parts[turn].append(mine.batch(NETWORK, seen, 10, slice(share.start, share.stop)).x0)
        mine.images.expect([])
    for batch, part in zip(expected, parts, strict=True):
        assert torch.equal(batch.x0, torch.cat(part))
    assert (
        sum(decoded.values()) <= 60
    )  # three batches, and at most the three that were expected next: once, not per rank


def test_held_out_images_are_decoded_once(folder: Path) -> None:
    held_out = load(DataConfig("folder", path=str(folder), size=8, heldout=6), "heldout")
    ready = held_out.ready(4)
    assert (len(ready), ready.sha256) == (4, held_out.sha256)
    shutil.rmtree(folder)
    assert torch.equal(ready.batch(torch.arange(4)), ready.batch(torch.arange(4)))


def test_a_source_moves_with_its_labels(tmp_path: Path) -> None:
    path = made.imagenet(tmp_path)
    opened = load(DataConfig("imagenet", path=str(path), size=8), "train")
    moved = opened.to("meta")
    assert moved.device.type == moved.labels.device.type == "meta"
    assert moved.batch(torch.arange(2)).device.type == "meta"
    assert opened.labels.device.type == "cpu"


def test_stratified_splits_have_every_class(tmp_path: Path) -> None:
    path = made.imagenet(tmp_path, each=12, apart=6)
    for split in ("heldout", "reference"):
        labels = load(DataConfig("imagenet", path=str(path), size=8), split).labels  # type: ignore[arg-type]
        assert np.bincount(labels.numpy()).min() >= 2  # of three each


def test_a_backbone_for_each_of_the_papers_sets_has_its_shape() -> None:
    backbone = resolve(["data=latents", "backbone=dit-xl/2", "process=dit"]).backbone
    assert backbone == named_config("dit-xl/2", classes=1000)
