"""Encoding gives what the autoencoder gives; the same bytes however many work and die; damage is named."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from study.data import DataConfig, load
from study.data.__main__ import main as data
from study.latents.command import main, who
from study.latents.files import EncodingPlan, open_shard, read_plan, read_shard
from study.latents.folder import read_folder, write_record
from tests.study.latents.tiny import WEIGHTS, contents, encoding, save_autoencoder, words


def test_latents_are_the_autoencoder_s_posteriors(latents: Path, autoencoder: Path) -> None:
    """By diffusers alone, image by image: mean and deviation, as it is and mirrored, and the scale factor beside."""
    from diffusers import AutoencoderKL

    network = AutoencoderKL.from_pretrained(str(autoencoder))
    images = load(DataConfig("glyphtex64", count=40, heldout=10, reference=12), "train")
    plan = read_plan(latents / "train")
    assert plan.scale == network.config.scaling_factor == 0.18215
    for image in (0, 17, 39):
        shard, row = divmod(image, plan.shard)
        stored = torch.from_numpy(np.array(open_shard(latents / "train", plan, shard)[row]))  # (2, 2, 4, 8, 8)
        x = images.batch(torch.tensor([image]))
        for flipped, picture in enumerate((x, x.flip(-1))):
            with torch.no_grad():
                posterior = network.encode(picture).latent_dist
            torch.testing.assert_close(stored[flipped, 0], posterior.mean[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(stored[flipped, 1], posterior.std[0], rtol=1e-4, atol=1e-5)


def test_labels_and_reference_images_come_along(latents: Path) -> None:
    origin = DataConfig("glyphtex64", count=40, heldout=10, reference=12)
    config = DataConfig("latents", path=str(latents))
    assert (config.count, config.heldout, config.reference, config.size, config.classes) == (40, 10, 12, 64, 10)
    for split in ("train", "heldout"):
        assert torch.equal(load(config, split).labels, load(origin, split).labels)  # type: ignore[arg-type]
    found, real = load(config, "reference"), load(origin, "reference")
    assert torch.equal(found.images, real.images)  # type: ignore[attr-defined]
    assert torch.equal(found.labels, real.labels)


def test_float16_halves_the_disk(autoencoder: Path, latents: Path, tmp_path: Path) -> None:
    assert main([*words(tmp_path / "half", autoencoder), "--dtype", "float16"]) == 0
    half, full = (read_plan(folder / "train") for folder in (tmp_path / "half", latents))
    assert 2 * half.bytes == full.bytes
    for number in range(full.shards):
        ours, theirs = open_shard(tmp_path / "half/train", half, number), open_shard(latents / "train", full, number)
        np.testing.assert_array_equal(ours, theirs.astype(np.float16))


def test_killed_again_and_again_and_by_several_workers_the_bytes_are_the_same(
    autoencoder: Path, latents: Path, tmp_path: Path
) -> None:
    """Each is killed as soon as it has left one more shard than there were; then two finish together.

    STUDY_ENCODE_IMAGES=5000 does it with as many images, and five kills.
    """
    many = int(os.environ.get("STUDY_ENCODE_IMAGES", 0))
    size = ["--shard", str(many // 20), "--batch", "32"] if many else []
    calm = tmp_path / "calm" if many else latents
    assert not many or main([*words(calm, autoencoder, train=many), *size]) == 0
    arguments = [*words(tmp_path / "killed", autoencoder, train=many or 40), *size]
    folder = tmp_path / "killed" / "train"
    for _ in range(5 if many else 3):
        before = len(list(folder.glob("*.json")))
        with encoding(arguments) as worker:
            while len(list(folder.glob("*.json"))) == before and worker.poll() is None:
                time.sleep(0.005)
            assert worker.poll() is None
            worker.kill()
    assert main([*arguments, "--workers", "2"]) == 0
    assert contents(tmp_path / "killed") == contents(calm)


def test_one_flipped_bit_is_found_and_named(latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(latents, copy)

    def checked(code: int) -> str:
        assert data(["check", str(copy)]) == code
        return capsys.readouterr().out

    assert "damaged" not in checked(0)
    beside = ("reference.npy", "autoencoder/config.json", f"autoencoder/{WEIGHTS}")
    for name in ("train/00001.npy", "heldout/00000.npy", "train/labels.npy", *beside):
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        told = checked(1)
        assert f"{copy / name} is damaged: its checksum is not the one recorded" in told
        assert told.count("is damaged") == 1
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
    (copy / "train/00002.npy").unlink()
    assert f"{copy / 'train/00002.npy'} is missing" in checked(1)


def test_what_was_lost_or_cut_short_is_made_again(autoencoder: Path, latents: Path, tmp_path: Path) -> None:
    """A shard, labels, the autoencoder's copy and a reference image: the same command repairs them all."""
    copy = tmp_path / "copy"
    shutil.copytree(latents, copy)
    for name in ("train/00001.npy", "reference.npy"):
        (copy / name).unlink()
    for name in ("heldout/labels.npy", f"autoencoder/{WEIGHTS}"):
        (copy / name).write_bytes((copy / name).read_bytes()[:-4])
    assert main(words(copy, autoencoder)) == 0
    assert contents(copy) == contents(latents)


def test_other_labels_are_other_data(latents: Path, tmp_path: Path) -> None:
    """Changed by hand they are refused when they are read; written anew, they are another set."""
    copy = tmp_path / "copy"
    shutil.copytree(latents, copy)
    known = read_folder(copy).digest
    record = json.loads((copy / "reference.json").read_text(encoding="utf-8"))
    record["labels"][3] += 1
    (copy / "reference.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ValueError, match=r"reference\.json is damaged"):
        read_folder(copy)
    write_record(copy, record["labels"])
    assert read_folder(copy).digest != known
    labels = np.load(copy / "train/labels.npy")
    np.save(copy / "train/labels.npy", (labels + 1) % 10)
    with pytest.raises(ValueError, match=r"labels\.npy is damaged"):
        load(DataConfig("latents", path=str(copy)), "train")


def test_others_latents_are_not_added_to(
    autoencoder: Path, latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another autoencoder, other images, another cut: each is refused by the key that differs."""
    copy = tmp_path / "copy"
    shutil.copytree(latents, copy)
    other = save_autoencoder(tmp_path / "other", seed=1)
    before = contents(copy)
    for arguments, key in (
        (words(copy, other), "autoencoder_sha256="),
        (words(copy, autoencoder, train=41), "images_sha256="),
        ([*words(copy, autoencoder), "--scale", "1"], "scale=1.0"),
        ([*words(copy, autoencoder), "--shard", "8"], "shard=8"),
        ([*words(copy, autoencoder), "--dtype", "float16"], "dtype='float16'"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert key in error
        assert "was begun with" in error
    assert contents(copy) == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["out", "--autoencoder", "/no/such", "data=glyphtex64"], "autoencoder='/no/such' is not valid"),
        (["out", "--autoencoder", "AE", "data=glyphtex64", "train.lr=1"], "train.lr=1 is not valid: only data"),
        (["out", "--autoencoder", "AE", "data=glyphs64"], "data=glyphs64 is not valid: must be images of three"),
        (["out", "--autoencoder", "AE", "data=glyphtex64", "--shard", "0"], "--shard 0 is not valid"),
        (["out", "--autoencoder", "AE", "data=glyphtex64", "--device", "tpu"], "machine.device='tpu' is not usable"),
    ],
)
def test_bad_words_are_refused_and_leave_nothing(
    arguments: list[str], told: str, autoencoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"out": str(tmp_path / "out"), "AE": str(autoencoder)}
    assert main([places.get(word, word) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_unfinished_set_is_refused_as_such(latents: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(latents, copy)
    (copy / "heldout/latents.json").unlink()
    with pytest.raises(ValueError, match=r"heldout has no latents\.json: encoding is not finished"):
        DataConfig("latents", path=str(copy))
    (copy / "reference.json").unlink()
    with pytest.raises(ValueError, match="encoding is not finished"):
        DataConfig("latents", path=str(copy))
    with pytest.raises(ValueError, match="there is no encoding"):
        DataConfig("latents", path=str(tmp_path))


def test_a_truncated_shard_is_refused_when_it_is_opened(latents: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(latents, copy)
    shard = copy / "train/00001.npy"
    shard.write_bytes(shard.read_bytes()[:-100])
    source = load(DataConfig("latents", path=str(copy)), "train")
    with pytest.raises(ValueError, match=r"00001\.npy cannot be read"):
        source.batch(torch.tensor([5]))


@pytest.mark.parametrize(
    ("name", "key", "value", "told"),
    [
        ("train/plan.json", "count", "text", r"plan\.json does not describe latents: count='text' is not valid"),
        ("train/plan.json", "shard", 0, r"plan\.json does not describe latents: shard=0 is not valid"),
        ("train/plan.json", "count", 10**30, r"latents\.json does not list the latents of plan\.json beside it"),
        ("heldout/latents.json", "shards", None, r"latents\.json does not list the latents of plan\.json beside it"),
        ("heldout/latents.json", "labels_sha256", [[]], r"latents\.json does not list the latents"),
        ("reference.json", "files", None, r"reference\.json does not describe reference images"),
        ("reference.json", "files", {"reference.npy": 1}, r"reference\.json does not describe reference images"),
    ],
)
def test_a_changed_record_is_refused_by_its_name(
    name: str, key: str, value: object, told: str, latents: Path, tmp_path: Path
) -> None:
    """Of another type, without bounds, or no more what the latents were made by."""
    copy = tmp_path / "copy"
    shutil.copytree(latents, copy)
    record = json.loads((copy / name).read_text(encoding="utf-8"))
    (copy / name).write_text(json.dumps({**record, key: value}), encoding="utf-8")
    with pytest.raises(ValueError, match=told):
        read_folder(copy)


def test_reference_images_are_pictures_one_per_label(latents: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(latents, copy)
    images = np.load(copy / "reference.npy")
    for other in (images.astype(np.float64), images[:-1], images[:, :1], np.zeros(12, np.uint8)):
        np.save(copy / "reference.npy", other)
        with pytest.raises(ValueError, match=r"reference\.npy is .* must be uint8 \(12, 3, H, W\)"):
            load(DataConfig("latents", path=str(copy)), "reference")


def test_plan_knows_the_disk_of_imagenet() -> None:
    """1,281,167 images, twice, mean and deviation, 4 x 32 x 32 numbers of 4 bytes: 84 GB."""
    plan = EncodingPlan("", "", 1_281_167, 1000, (32, 32), 4, 8, "", "", 0.18215)
    assert plan.bytes == 83_962_560_512
    assert plan.shards == 1252
    assert sum(len(plan.part(number)) for number in range(plan.shards)) == plan.count


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8, 1)),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "6", "SLURM_LOCALID": "2"}, (5, 6, 2)),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4"}, (3, 4, 0)),
    ],
)
def test_a_worker_knows_its_number_from_whoever_started_it(
    environment: dict[str, str], expected: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert who() == expected


def test_a_record_of_a_shard_is_what_makes_it_exist(latents: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(latents, copy)
    (copy / "train/00001.json").unlink()
    assert read_shard(copy / "train", 1) is None
