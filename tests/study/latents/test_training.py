"""Encode, train, sample, decode and score: every backbone, on one process and on several, stopped and resumed."""

from __future__ import annotations

import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from study.compose import resolve
from study.config import RunConfig
from study.data import DataConfig, load
from study.interchange.command import main as interchange
from study.latents.decode import decoder_of
from study.latents.files import open_shard, read_plan
from study.latents.latent_set import LatentSet
from study.results import read_rows
from study.run import run
from study.run_directory import RunDirectory, Status, read_curve
from study.strict import ConfigError
from tests.study.latents.tiny import WEIGHTS, save_autoencoder, torchrun
from tests.study.ranked import do_run, kill_rank_0, stop_rank_3, together
from tests.study.short_run import RUN

BACKBONES = {
    "dit-tiny": ["backbone.depth=1", "backbone.width=16", "backbone.heads=2"],
    "diffussm-tiny": ["backbone.depth=1", "backbone.width=16", "backbone.heads=2"],
    "dis-tiny": ["backbone.depth=2", "backbone.width=16"],
    "unet-tiny": ["backbone.width=8", "backbone.head_width=8", "backbone.norm_groups=4"],
}
LATENT = [*RUN, "process=dit", "sample.sampler.clip=false", "sample.sampler.guidance=1.5", "score.metrics=[swd]"]


def words(backbone: str, latents: Path, results: Path) -> list[str]:
    own = [f"backbone={backbone}", *BACKBONES[backbone], "data=latents", f"data.path={latents}"]
    return [*own, *LATENT, f"results={results}"]


def configured(backbone: str, latents: Path, results: Path, *more: str) -> RunConfig:
    return resolve([*words(backbone, latents, results), *more])


@pytest.fixture(scope="module")
def alone(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    config = configured("diffussm-tiny", latents, tmp_path_factory.mktemp("alone"))
    assert run(config).status is Status.DONE
    return RunDirectory.of(config)


def test_a_batch_is_drawn_from_the_posteriors_on_disk(latents: Path) -> None:
    """x0 = scale (mean + deviation noise), by hand from the files; mirrored ones from the mirror image's posterior."""
    source = cast(LatentSet, load(DataConfig("latents", path=str(latents)), "train"))
    plan = read_plan(latents / "train")
    index, mirrored = torch.tensor([39, 3, 3]), torch.tensor([False, True, False])
    noise = torch.randn(3, 4, 8, 8)
    expected, means = [], []
    for image, flip, each in zip(index.tolist(), mirrored.tolist(), noise, strict=True):
        array = open_shard(latents / "train", plan, image // plan.shard)
        mean, deviation = torch.from_numpy(np.array(array[image % plan.shard, int(flip)]))
        expected.append(0.18215 * (mean + deviation * each))
        means.append(0.18215 * mean)
    torch.testing.assert_close(source.batch(index, mirrored, noise), torch.stack(expected))
    torch.testing.assert_close(source.batch(index, mirrored), torch.stack(means))
    assert not torch.equal(*source.batch(index, mirrored)[1:])
    source.expect([index, index])  # a hint changes nothing
    torch.testing.assert_close(source.batch(index, mirrored), torch.stack(means))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_torchrun_trains_samples_decodes_and_scores(backbone: str, latents: Path, tmp_path: Path) -> None:
    config = configured(backbone, latents, tmp_path)
    torchrun(2, "study.run", *words(backbone, latents, tmp_path))
    directory = RunDirectory.of(config)
    with np.load(directory.samples / "adm.npz") as file:
        assert file["arr_0"].shape == (4, 64, 64, 3)
        assert len(np.unique(file["arr_0"])) > 1
    rows = {row.metric: row for row in read_rows(directory.rows)}
    assert {"val_loss", "swd@4"} <= rows.keys()
    assert np.isfinite(rows["swd@4"].value)


def test_torchrun_gives_the_curve_of_one_process(alone: RunDirectory, latents: Path, tmp_path: Path) -> None:
    given = words("diffussm-tiny", latents, tmp_path)
    torchrun(2, "study.run", *given)
    same_curve(RunDirectory(tmp_path, alone.identity), alone)


def test_killed_and_resumed_by_two_four_and_one(alone: RunDirectory, latents: Path, tmp_path: Path) -> None:
    """One rank of two is killed; four go on until one is asked to stop; one process ends it."""
    config = configured("diffussm-tiny", latents, tmp_path)
    directory = RunDirectory.of(config)
    assert together(2, do_run, config, kill_rank_0) == [-signal.SIGKILL, 1]
    assert directory.read_state().images <= 20
    assert set(together(4, do_run, config, stop_rank_3)) == {128 + signal.SIGTERM}
    assert 20 < directory.read_state().images < 48
    assert run(config).status is Status.DONE
    same_curve(directory, alone)


def same_curve(found: RunDirectory, expected: RunDirectory) -> None:
    mine, theirs = read_curve(found.curve), read_curve(expected.curve)
    assert [point.keys() for point in mine] == [point.keys() for point in theirs]
    for point, other in zip(mine, theirs, strict=True):
        assert point == pytest.approx(other, rel=1e-5)


def test_training_never_touches_the_autoencoder(latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, and without diffusers, a run trains to its end; only samples need them."""
    copy = tmp_path / "latents"
    shutil.copytree(latents, copy)
    shutil.rmtree(copy / "autoencoder")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    bare = ["sample.count=0", "score.metrics=[]", "log.save_samples=false"]
    assert run(configured("dit-tiny", copy, tmp_path, *bare)).status is Status.DONE
    with pytest.raises(ConfigError, match="the latents extra is not installed"):
        run(configured("dit-tiny", copy, tmp_path))
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="must be the autoencoder that made the latents"):
        run(configured("dit-tiny", copy, tmp_path))
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_truncated_autoencoder_is_named_before_training(latents: Path, tmp_path: Path) -> None:
    copy = tmp_path / "latents"
    shutil.copytree(latents, copy)
    weights = copy / "autoencoder" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=rf"{WEIGHTS} is damaged: it has \d+ bytes, not \d+; encode again"):
        run(configured("dit-tiny", copy, tmp_path))
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_another_autoencoder_beside_the_latents_is_refused(latents: Path, tmp_path: Path) -> None:

    copy = tmp_path / "latents"
    shutil.copytree(latents, copy)
    shutil.rmtree(copy / "autoencoder")
    save_autoencoder(copy / "autoencoder", seed=1)
    with pytest.raises(ValueError, match="its weights are others"):
        decoder_of(DataConfig("latents", path=str(copy)), torch.device("cpu"))


def test_other_latents_under_the_same_path_are_not_trained_on(latents: Path) -> None:
    known = DataConfig("latents", path=str(latents))
    with pytest.raises(ValueError, match="holds other images"):
        load(replace(known, digest="0" * 32), "train")


def test_a_latent_run_is_exported_and_sampled_with_guidance(alone: RunDirectory, latents: Path, tmp_path: Path) -> None:
    """The -G rows: from the same weights, at another guidance, without training again."""
    assert interchange(["export", str(alone.path), str(tmp_path / "ours")]) == 0
    few = ["--count", "3", "--steps", "3", "--device", "cpu", "--guidance", "4.0", "--labels", "balanced"]
    given = [str(tmp_path / "ours"), "--out", str(tmp_path / "g.npz"), "--autoencoder", str(latents / "autoencoder")]
    assert interchange(["sample", *given, *few]) == 0
    with np.load(tmp_path / "g.npz") as guided, np.load(alone.samples / "adm.npz") as plain:
        assert guided["arr_0"].shape == (3, 64, 64, 3)
        assert not np.array_equal(guided["arr_0"], plain["arr_0"][:3])
