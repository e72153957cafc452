"""Sampling to files: what a sample depends on, what survives a kill, what others can read."""

from __future__ import annotations

import errno
import gc
import hashlib
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
from models import Denoiser
from models.dit import DiT, DiTConfig
from study.compose import resolve
from study.data import to_uint8
from study.diffusion import FlowConfig, GaussianConfig, Process, SamplerConfig, make_process
from study.run_directory import RunDirectory
from study.sample import (
    IN_MEMORY,
    MEANING,
    SampleNoise,
    Samples,
    drop_others,
    labels_of,
    load_samples,
    sample,
    share,
    weights_digest,
)
from tests.study.short_run import SMALL, finished

CONFIG = DiTConfig(size=(8, 8), P=4, channels=1, width=16, depth=1, heads=2, classes=5, learn_sigma=False)
PROCESS = make_process(GaussianConfig(variance="fixed_small"))
SAMPLER = SamplerConfig("ddpm", "4", clip=True, guidance=1.5)
CPU = torch.device("cpu")
KNOWN_NOISE = [-2.016618, 0.423193, 0.181114, -1.580671]


def network(config: DiTConfig = CONFIG) -> DiT:
    torch.manual_seed(0)
    model = DiT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def draw(indices: range, denoiser: Denoiser | None = None, **options: Any) -> Samples:
    process: Process = options.pop("process", PROCESS)
    return sample(denoiser or network(), process, options.pop("sampler", SAMPLER), indices, **options)


def assert_same(a: Samples, b: Samples) -> None:
    """Bytes may differ by one level: a matrix product rounds differently at another batch size."""
    assert (a.images.int() - b.images.int()).abs().max() <= 1
    assert (a.images == b.images).float().mean() > 0.99
    assert a.labels is not None
    assert b.labels is not None
    assert torch.equal(a.labels, b.labels)


# --- what a sample depends on ----------------------------------------------------------------------------------


def test_noise_is_bit_equal_whatever_the_batch() -> None:
    whole = SampleNoise(range(10), (3, 4, 4), 7, CPU)
    part = SampleNoise(range(6, 8), (3, 4, 4), 7, CPU)
    for step in range(3):
        assert torch.equal(whole(step)[6:8], part(step))


def test_noise_is_standard_and_independent_between_samples_steps_and_seeds() -> None:
    noise = SampleNoise(range(300), (1, 8, 8), 0, CPU)
    draws = torch.stack([noise(0), noise(1), SampleNoise(range(300), (1, 8, 8), 1, CPU)(0)]).flatten(1)
    assert draws.mean().abs() < 0.02
    assert draws.std() == pytest.approx(1, abs=0.02)
    assert (torch.corrcoef(draws) - torch.eye(3)).abs().max() < 0.03
    assert torch.corrcoef(noise(2).flatten(1))[0, 1:].abs().mean() < 0.15


def test_known_noise_does_not_change_between_releases() -> None:
    """Published samples can be drawn again; raise the protocol's version if this ever has to change."""
    noise = SampleNoise([0, 41], (1, 4, 4), 3, CPU).draw()
    assert noise[1, 0, 0].tolist() == pytest.approx(KNOWN_NOISE, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 20])
@pytest.mark.parametrize("process", [PROCESS, make_process(FlowConfig())], ids=["gaussian", "flow"])
def test_batch_size_does_not_matter(batch_size: int, process: Process) -> None:
    sampler = SAMPLER if process is PROCESS else SamplerConfig("heun", "3", guidance=1.5)
    expected = draw(range(12), process=process, sampler=sampler, batch_size=12)
    assert_same(draw(range(12), process=process, sampler=sampler, batch_size=batch_size), expected)


@pytest.mark.parametrize("policy", ["balanced", "random"])
def test_any_range_holds_the_same_samples(policy: str) -> None:
    whole, part = draw(range(12), labels=policy), draw(range(5, 9), labels=policy)
    assert whole.labels is not None
    assert_same(part, Samples(whole.images[5:9], whole.labels[5:9]))


def test_seeds_give_other_samples() -> None:
    assert not torch.equal(draw(range(3)).images, draw(range(3), seed=1).images)


def test_labels() -> None:
    assert labels_of(range(3, 9), 5, "balanced", 0).tolist() == [3, 4, 0, 1, 2, 3]  # type: ignore[union-attr]
    random = labels_of(range(2000), 5, "random", 0)
    assert random is not None
    assert torch.bincount(random, minlength=5).min() > 330
    assert torch.equal(random[40:50], labels_of(range(40, 50), 5, "random", 0))  # type: ignore[arg-type]
    assert labels_of(range(3), 0, "balanced", 0) is None


def test_unconditional_backbones_have_no_labels(tmp_path: Path) -> None:
    unconditional = network(replace(CONFIG, classes=0))
    samples = draw(range(4), unconditional, sampler=SamplerConfig("ddim", "3"), folder=tmp_path)
    assert samples.labels is None
    assert load_samples(tmp_path, range(4)).labels is None


def test_the_mode_of_the_network_is_given_back() -> None:
    denoiser = network().train()
    draw(range(2), denoiser)
    assert denoiser.training
    assert all(p.grad is None for p in denoiser.parameters())


# --- resuming --------------------------------------------------------------------------------------------------


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
from tests.study.test_sample import draw, network
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


def test_progress_counts_every_evaluation_and_what_was_there(tmp_path: Path) -> None:
    told: list[float] = []
    draw(range(2), folder=tmp_path)
    draw(range(5), folder=tmp_path, batch_size=2, tell=told.append)
    assert told == [2, 2.5, 3, 3.5, 4, 4.25, 4.5, 4.75, 5]  # four steps for samples 2 and 3, four for sample 4


@pytest.mark.parametrize("few", [IN_MEMORY, 0])
def test_no_more_than_a_batch_is_in_memory(tmp_path: Path, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards go to the disk as they are drawn; what is put together from them is mapped from a file if it is much."""
    monkeypatch.setattr(study.sample, "IN_MEMORY", few)
    held: list[int] = []

    def decode(images: Tensor) -> Tensor:
        gc.collect()
        held.append(sum(type(each) is Samples for each in gc.get_objects()))
        return to_uint8(images)

    found = draw(range(12), batch_size=2, folder=tmp_path, decode=decode)
    assert max(held) <= 1  # the batch before, not yet let go
    assert len(held) == 6
    expected = draw(range(12), batch_size=2)
    assert torch.equal(found.images, expected.images)
    assert found.images.is_contiguous()
    mapped = str(tmp_path) in Path("/proc/self/maps").read_text()
    assert mapped is (few == 0)
    for path in tmp_path.iterdir():
        path.unlink()
    assert torch.equal(found.images, expected.images)  # its file has no name, and lasts as long as they do


def test_a_full_disk_is_no_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study.sample, "IN_MEMORY", 0)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device"):
        draw(range(4), folder=tmp_path)


def test_a_run_with_many_samples_keeps_none_of_them_in_memory(
    undisturbed: RunDirectory, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (study.sample, study.sample_together):
        monkeypatch.setattr(module, "IN_MEMORY", 0)
    kept, passing = finished(words), finished([*words, "log.save_samples=false", "train.flip=false"])
    assert (kept.samples / "adm.npz").read_bytes() == (undisturbed.samples / "adm.npz").read_bytes()
    assert passing.grid.exists()
    assert not passing.samples.exists()


# --- files for others ------------------------------------------------------------------------------------------


def test_our_own_files_keep_grey_grey(tmp_path: Path) -> None:
    samples = draw(range(3), folder=tmp_path)
    assert samples.images.shape == (3, 1, 8, 8)
    assert load_samples(tmp_path, range(3)).images.shape == (3, 1, 8, 8)


def test_the_same_samples_are_the_same_file(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        draw(range(3), folder=tmp_path / name)
        digests.add(hashlib.sha256((tmp_path / name / "000000-000003.npz").read_bytes()).hexdigest())
    assert len(digests) == 1


# --- faults ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"indices": range(0)}, "indices="),
        ({"indices": range(0, 6, 2)}, "indices="),
        ({"batch_size": 0}, "batch_size=0"),
        ({"labels": "even"}, "labels='even'.*balanced, random"),
        ({"sampler": SamplerConfig("euler", "4")}, "sampler='euler'"),
        ({"sampler": SamplerConfig("ddpm", "0")}, "steps='0'"),
        ({"process": make_process(GaussianConfig())}, "learn_sigma=False.*learned_range"),
        ({"denoiser": DiT(replace(CONFIG, class_dropout=0.0))}, "guidance=1.5.*null class"),
    ],
)
def test_refused_before_anything_is_written(tmp_path: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        draw(**{"indices": range(4), "folder": tmp_path / "out", **options})
    assert not (tmp_path / "out").exists()


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


def test_a_network_that_went_wrong_leaves_no_images(tmp_path: Path) -> None:
    denoiser = network()
    with torch.no_grad():
        denoiser.final_layer.linear.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        draw(range(2), denoiser, folder=tmp_path)
    assert not list(tmp_path.glob("*.npz"))


def test_missing_samples_are_named(tmp_path: Path) -> None:
    draw(range(4), folder=tmp_path)
    with pytest.raises(ValueError, match=r"lacks samples 4\.\.9"):
        load_samples(tmp_path, range(10))


def test_weights_digest_sees_every_parameter() -> None:
    denoiser = network()
    before = weights_digest(denoiser)
    for parameter in denoiser.parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-3
        assert weights_digest(denoiser) != before
        with torch.no_grad():
            parameter.copy_(kept)
    assert weights_digest(denoiser) == before
