"""Sampling to files: what a sample depends on, what it costs in memory, what others can read."""

from __future__ import annotations

import gc
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import study.sample
import study.sample_together
from models.dit import DiT
from study.data import to_uint8
from study.diffusion import FlowConfig, GaussianConfig, Process, SamplerConfig, make_process
from study.run_directory import RunDirectory
from study.sample import (
    IN_MEMORY,
    SampleNoise,
    Samples,
    labels_of,
    load_samples,
    weights_digest,
)
from tests.study.drawing import CONFIG, PROCESS, SAMPLER, assert_same, draw, network
from tests.study.short_run import finished

CPU = torch.device("cpu")
KNOWN_NOISE = [-2.016618, 0.423193, 0.181114, -1.580671]


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


# --- what it costs in memory -------------------------------------------------------------------------------------


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


def test_a_network_that_went_wrong_leaves_no_images(tmp_path: Path) -> None:
    denoiser = network()
    with torch.no_grad():
        denoiser.final_layer.linear.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        draw(range(2), denoiser, folder=tmp_path)
    assert not list(tmp_path.glob("*.npz"))


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
