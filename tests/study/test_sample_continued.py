"""Samples in a folder: what survives a kill, who may add to it, and what is drawn again."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import study.sample
import study.sample_together
from models.dit import DiT
from study.compose import resolve
from study.diffusion import GaussianConfig, make_process
from study.run_directory import RunDirectory
from study.sample import (
    MEANING,
    drop_others,
    load_samples,
    share,
)
from tests.study.drawing import CONFIG, SAMPLER, assert_same, draw, network
from tests.study.short_run import SMALL, finished


class Killed(DiT):
    """Dies at its n-th call."""

    calls_left = 10**9

    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise KeyboardInterrupt
        return super().denoise(x, t, y)


@pytest.mark.parametrize("calls", [0, 3, 4, 9])  # each batch takes four
def test_a_killed_call_is_continued_to_the_same_bytes(tmp_path: Path, calls: int) -> None:
    denoiser = Killed(CONFIG)
    denoiser.load_state_dict(network().state_dict())
    denoiser.calls_left = calls
    with pytest.raises(KeyboardInterrupt):
        draw(range(12), denoiser, batch_size=5, folder=tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == calls // 4
    denoiser.calls_left = 4 * (3 - calls // 4)  # only what is missing
    resumed = draw(range(12), denoiser, batch_size=5, folder=tmp_path)
    assert torch.equal(resumed.images, draw(range(12), batch_size=5).images)
    denoiser.calls_left = 0
    assert torch.equal(draw(range(12), denoiser, batch_size=5, folder=tmp_path).images, resumed.images)


KILLED_SCRIPT = """
import os, signal, sys
from pathlib import Path
import numpy as np
import study.sample as module
from tests.study.drawing import draw, network
savez, left = np.savez, [2]
def dying(file, **arrays):
    left[0] -= 1
    if left[0] == 0:
        file.write(b"half a shard"); file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    savez(file, **arrays)
module.np.savez = dying
draw(range(12), batch_size=5, folder=Path(sys.argv[1]))
"""


def test_sigkill_inside_a_write_costs_one_batch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_SCRIPT, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.glob("*.npz")) == ["000000-000005.npz"]
    resumed = draw(range(12), batch_size=5, folder=tmp_path)
    assert_same(resumed, draw(range(12), batch_size=5))
    assert not list(tmp_path.glob(".*.tmp"))


def test_more_samples_in_other_batches_extend_a_folder(tmp_path: Path) -> None:
    draw(range(4), batch_size=4, folder=tmp_path)
    extended = draw(range(11), batch_size=3, folder=tmp_path)
    assert sorted(path.stem for path in tmp_path.glob("*.npz")) == [
        "000000-000004",
        "000004-000007",
        "000007-000010",
        "000010-000011",
    ]
    assert_same(extended, draw(range(11)))
    part = load_samples(tmp_path, range(2, 6))
    assert torch.equal(part.images, extended.images[2:6])


@pytest.mark.parametrize("count", [1, 7, 12])
def test_workers_share_without_gap_or_overlap(tmp_path: Path, count: int) -> None:
    shares = [share(count, worker, 3) for worker in range(3)]
    assert [i for part in shares for i in part] == list(range(count))
    for part in shares:
        if part:
            draw(part, batch_size=2, folder=tmp_path)
    assert_same(load_samples(tmp_path, range(count)), draw(range(count)))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_shard_is_drawn_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = draw(range(9), batch_size=3, folder=tmp_path)
    shard = tmp_path / "000003-000006.npz"
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 0x55
    shard.write_bytes({"truncated": bytes(content[:200]), "flipped": bytes(content), "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        again = draw(range(9), batch_size=3, folder=tmp_path)
    assert "000003-000006.npz is damaged" in caplog.text
    assert torch.equal(again.images, expected.images)


@pytest.mark.parametrize("left", [b'{"seed": 1}', b"[]", b'{"se', b""], ids=["other", "list", "cut", "empty"])
def test_samples_of_something_else_are_dropped_at_once_or_not_at_all(
    tmp_path: Path, left: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    draw(range(4), folder=tmp_path, batch_size=2)
    meaning = json.loads((tmp_path / MEANING).read_text())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    drop_others(tmp_path, meaning)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / MEANING).write_bytes(left)
    with pytest.raises(ValueError, match=f"{MEANING}"):
        draw(range(4), folder=tmp_path)
    with caplog.at_level(logging.WARNING):
        drop_others(tmp_path, meaning)
    assert "will be drawn again" in caplog.text
    assert list(tmp_path.iterdir()) == []
    drop_others(tmp_path, meaning)  # nothing there: nothing to do
    drop_others(tmp_path / "never made", meaning)


def test_a_run_draws_samples_left_by_other_weights_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clean = finished([*SMALL, f"results={tmp_path / 'clean'}"])
    words = [*SMALL, f"results={tmp_path / 'left'}"]
    folder = RunDirectory.of(resolve(words)).samples
    draw(range(4), folder=folder)
    with caplog.at_level(logging.WARNING):
        left = finished(words)
    assert "will be drawn again" in caplog.text
    for name in ("adm.npz", MEANING):
        assert (left.samples / name).read_bytes() == (clean.samples / name).read_bytes()


def test_a_full_disk_is_no_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study.sample, "IN_MEMORY", 0)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device"):
        draw(range(4), folder=tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed=1"),
        ({"sampler": replace(SAMPLER, guidance=2.0)}, "sampler="),
        ({"labels": "random"}, "labels='random'"),
        ({"denoiser": DiT(CONFIG)}, "weights="),
        ({"process": make_process(GaussianConfig(schedule="cosine", variance="fixed_small"))}, "process="),
    ],
)
def test_a_folder_of_other_samples_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    draw(range(2), folder=tmp_path)
    with pytest.raises(ValueError, match=f"{named}.*or another folder"):
        draw(**{"indices": range(4), "folder": tmp_path, **change})


def test_missing_samples_are_named(tmp_path: Path) -> None:
    draw(range(4), folder=tmp_path)
    with pytest.raises(ValueError, match=r"lacks samples 4\.\.9"):
        load_samples(tmp_path, range(10))
