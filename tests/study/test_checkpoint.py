"""Checkpoints: what was written comes back, and whatever else is on the disk is refused by name."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
from pathlib import Path

import pytest
import torch

import study.checkpoint
from study.atomic import write_file, write_text
from study.checkpoint import Checkpoint, CheckpointFolder, CheckpointWriteError, DamagedCheckpointError, crossed


def folder_in(path: Path, keep_every: int = 0) -> CheckpointFolder:
    return CheckpointFolder(path / "checkpoint", "owner", keep_every)


def checkpoint_at(images: int) -> Checkpoint:
    tensors = {"weights": torch.full((50, 10), float(images)), "scalar": torch.tensor(images)}
    return Checkpoint(images, tensors, {"seconds": 1.5, "counters": [images]})


def filled(path: Path, *images: int, keep_every: int = 0) -> CheckpointFolder:
    folder = folder_in(path, keep_every)
    for count in images:
        folder.save(checkpoint_at(count))
    return folder


def newest(folder: CheckpointFolder) -> int | None:
    found = folder.restore_newest(lambda checkpoint: None)
    return found.images if found else None


def test_round_trip(tmp_path: Path) -> None:
    loaded = filled(tmp_path, 7).load(7)
    expected = checkpoint_at(7)
    assert loaded.facts == expected.facts
    assert loaded.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(loaded.tensors[name], expected.tensors[name]) for name in expected.tensors)


def test_nothing_there(tmp_path: Path) -> None:
    assert newest(folder_in(tmp_path)) is None


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    assert list(filled(tmp_path, 10, 20, 30, 40).newest_first()) == [40, 30]


def test_multiples_of_keep_every_are_kept(tmp_path: Path) -> None:
    assert list(filled(tmp_path, 10, 20, 30, 40, 50, 60, keep_every=20).newest_first()) == [60, 50, 40, 20]


def test_one_checkpoint_per_keep_every_is_kept_though_no_multiple_is_hit(tmp_path: Path) -> None:
    """Batches of 64 and keep_every=1000: the first checkpoint past each multiple stays, whatever else is saved."""
    counts = [640, 1024, 1280, 1920, 2048, 2560, 3008, 3072, 3200]
    assert list(filled(tmp_path, *counts, keep_every=1000).newest_first()) == [3200, 3072, 3008, 2048, 1024]


def test_having_to_start_over_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = filled(tmp_path, 10, 20)
    for record in folder.path.glob("*.json"):
        flip_a_byte(record, 0.5)
    assert newest(folder) is None
    assert caplog.messages[-1] == "no checkpoint before it: starting over"


def test_checkpoints_beyond_a_resumed_one_go(tmp_path: Path) -> None:
    assert list(filled(tmp_path, 10, 20, 30, 25).newest_first()) == [25, 20]


def flip_a_byte(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("place", [0.0, 0.02, 0.5, 0.98])
@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_flipped_byte_falls_back(tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, place: float) -> None:
    folder = filled(tmp_path, 10, 20)
    damaged = folder.path / f"{20:012d}{suffix}"
    flip_a_byte(damaged, place)
    assert newest(folder) == 10
    assert f"{20:012d}" in caplog.text
    assert "falling back" in caplog.text


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_falls_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, share: float
) -> None:
    folder = filled(tmp_path, 10, 20)
    path = folder.path / f"{20:012d}{suffix}"
    os.truncate(path, int(share * path.stat().st_size))
    assert newest(folder) == 10
    assert ("truncated" if suffix == ".safetensors" else "cannot be read") in caplog.text


def test_a_missing_tensor_file_falls_back(tmp_path: Path) -> None:
    folder = filled(tmp_path, 10, 20)
    (folder.path / f"{20:012d}.safetensors").unlink()
    assert newest(folder) == 10


def test_when_all_are_damaged_there_is_none(tmp_path: Path) -> None:
    folder = filled(tmp_path, 10, 20)
    for path in folder.path.glob("*.safetensors"):
        flip_a_byte(path, 0.7)
    assert newest(folder) is None


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = filled(tmp_path, 10)
    with pytest.raises(DamagedCheckpointError, match="owner='owner', expected 'someone else'"):
        CheckpointFolder(folder.path, "someone else").load(10)


def test_a_renamed_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = filled(tmp_path, 10)
    for suffix in (".safetensors", ".json"):
        (folder.path / f"{10:012d}{suffix}").rename(folder.path / f"{30:012d}{suffix}")
    with pytest.raises(DamagedCheckpointError, match="images=10, expected 30"):
        folder.load(30)


def test_one_that_does_not_fit_falls_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def restore(checkpoint: Checkpoint) -> None:
        if checkpoint.images == 20:
            raise ValueError("weights have shape (3,), expected (4,)")

    found = filled(tmp_path, 10, 20).restore_newest(restore)
    assert found is not None
    assert found.images == 10
    assert "does not fit: weights have shape (3,), expected (4,)" in caplog.text


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("exit 1",)


def test_a_pickle_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one with a matching checksum: there is no unpickling to reach."""
    folder = filled(tmp_path, 10)
    path = folder.path / f"{10:012d}.safetensors"
    path.write_bytes(pickle.dumps(Malicious()))
    record = path.with_suffix(".json")
    content = json.loads(record.read_text())["content"]
    content |= {"bytes": path.stat().st_size, "sha256": study.checkpoint.sha256_of(path)}
    record.write_text(json.dumps({"content": content, "sha256": study.checkpoint._digest(content)}))
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("executed"))
    with pytest.raises(DamagedCheckpointError, match="cannot be read"):
        folder.load(10)


@pytest.mark.parametrize("key", ["bytes", "sha256", "facts"])
def test_a_sealed_record_that_lacks_something_falls_back(tmp_path: Path, key: str) -> None:
    """Its seal is right: whoever wrote it wrote another form."""
    folder = filled(tmp_path, 100, 200)
    record = folder.path / f"{200:012d}.json"
    content = {name: value for name, value in json.loads(record.read_text())["content"].items() if name != key}
    record.write_text(json.dumps({"content": content, "sha256": study.checkpoint._digest(content)}))
    with pytest.raises(DamagedCheckpointError, match=f"{key}=None"):
        folder.load(200)
    assert newest(folder) == 100


def test_a_failed_write_keeps_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = filled(tmp_path, 10, 20)

    def full_disk(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(study.checkpoint, "save_file", full_disk)
    with pytest.raises(
        CheckpointWriteError, match=r"cannot write checkpoint .*30\.safetensors: No space left on device"
    ):
        folder.save(checkpoint_at(30))
    assert list(folder.newest_first()) == [20, 10]
    assert not list(folder.path.glob(".*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]).returncode:
        pytest.skip("needs the right to mount a small file system")
    return disk


def test_a_full_disk(small_disk: Path) -> None:
    try:
        folder = filled(small_disk, 10)
        big = Checkpoint(20, {"weights": torch.zeros(100_000)}, {})
        with pytest.raises(CheckpointWriteError, match="No space left on device"):
            folder.save(big)
        assert newest(folder) == 10
        assert sorted(path.suffix for path in folder.path.iterdir()) == [".json", ".safetensors"]
    finally:
        subprocess.run(["umount", small_disk], check=True)


def test_cleaning_removes_what_killed_writers_left(tmp_path: Path) -> None:
    folder = filled(tmp_path, 10)
    (folder.path / f".{20:012d}.safetensors.123.tmp").write_bytes(b"half")
    (folder.path / f"{20:012d}.safetensors").write_bytes(b"without a record")
    folder.clean()
    assert sorted(path.name for path in folder.path.iterdir()) == [f"{10:012d}.json", f"{10:012d}.safetensors"]


def test_a_failed_atomic_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_file(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("before", "now", "every", "expected"),
    [(0, 4, 4, True), (4, 7, 4, False), (7, 9, 4, True), (0, 64, 10, True), (0, 64, 0, False)],
)
def test_crossed(before: int, now: int, every: int, expected: bool) -> None:
    assert crossed(before, now, every) is expected
