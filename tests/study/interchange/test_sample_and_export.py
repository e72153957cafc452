"""From an official checkpoint to a score, and from a run to a folder that others can load."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models import build
from study.checkpoint import CheckpointFolder
from study.diffusion import SamplerConfig, make_process
from study.interchange.command import main
from study.interchange.model_folder import load_model
from study.latents.autoencoder import load_autoencoder
from study.run_directory import RunDirectory
from study.sample import Samples, sample
from study.score.__main__ import main as score
from tests.study.interchange.checkpoints import FIELDS, parity_weights, save, words
from tests.study.latents.tiny import save_autoencoder, torchrun
from tests.study.short_run import SMALL, finished

FEW = ["--count", "5", "--steps", "3", "--batch", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers")
    return save_autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DiT's parity weights, as a network for latents of 64-pixel images."""
    folder = tmp_path_factory.mktemp("models")
    source = save(folder / "official.pt", parity_weights("dit_p2"))
    backbone, fields = FIELDS["dit_p2"]
    given = ["--backbone", backbone, "--set", *words({**fields, "latent_factor": 8})]
    assert main(["import", str(source), "--out", str(folder / "dit"), *given]) == 0
    return folder / "dit"


@pytest.fixture(scope="module")
def guided(model: Path, autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("samples") / "dit.npz"
    assert (
        main(["sample", str(model), "--out", str(out), "--autoencoder", str(autoencoder), "--guidance", "4", *FEW]) == 0
    )
    return out


def test_samples_are_those_of_the_network_decoded(guided: Path, model: Path, autoencoder: Path) -> None:
    """The same drawn in one batch through the library, with DiT's own process: learned variances, 3 channels guided."""
    network, described = load_model(model)
    decoder = load_autoencoder(str(autoencoder))
    sampler = SamplerConfig("ddpm", "3", guidance=4.0, guidance_channels="first3")
    process = make_process(described.process)
    drawn = sample(network, process, sampler, range(5), labels="random", decode=decoder.decode)
    with np.load(guided) as file:
        assert file["arr_0"].shape == (5, 64, 64, 3)
        difference = file["arr_0"].astype(int) - drawn.images.permute(0, 2, 3, 1).numpy().astype(int)
        assert drawn.labels is not None
        np.testing.assert_array_equal(file["arr_1"], drawn.labels.numpy())
    assert abs(difference).max() <= 1  # of 255: other batches may round otherwise


def test_samples_of_a_checkpoint_are_scored_by_one_command(
    guided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "reference.npz", arr_0=rng.integers(0, 256, (9, 64, 64, 3), dtype=np.uint8))
    assert score([str(guided), str(tmp_path / "reference.npz"), "--metrics", "swd", "--no-cache"]) == 0
    assert "swd@5" in capsys.readouterr().out


@pytest.fixture
def unfinished(model: Path, autoencoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where samples were to be: all but the third and fourth are drawn, and nothing is written yet."""

    def full(path: Path, samples: Samples) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "unfinished" / "dit.npz"
    with monkeypatch.context() as patch:
        patch.setattr("study.interchange.sampling.write_for_adm", full)
        given = ["--autoencoder", str(autoencoder), "--guidance", "4", *FEW]
        assert main(["sample", str(model), "--out", str(out), *given]) == 1
    shards = sorted(out.parent.rglob("*-*.npz"))
    assert [path.stem for path in shards] == ["000000-000002", "000002-000004", "000004-000005"]
    shards[1].unlink()
    return out


def test_what_is_there_is_not_drawn_again(
    unfinished: Path, guided: Path, model: Path, autoencoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--autoencoder", str(autoencoder), "--guidance", "4", *FEW]
    assert main(["sample", str(model), "--out", str(unfinished), *given]) == 0
    assert unfinished.read_bytes() == guided.read_bytes()
    assert capsys.readouterr().err.startswith("60 % of 5 samples")  # so many were there


def test_only_the_samples_are_left_once_they_are_whole(guided: Path) -> None:
    assert [path.name for path in guided.parent.iterdir()] == ["dit.npz"]


@pytest.mark.parametrize("change", [["--scale", "1.0"], ["--precision", "bf16"], ["--seed", "1"]])
def test_samples_decoded_or_computed_otherwise_are_not_taken_for_these(
    unfinished: Path, model: Path, autoencoder: Path, tmp_path: Path, change: list[str]
) -> None:
    given = ["--autoencoder", str(autoencoder), "--guidance", "4", *FEW, *change]
    for out in (unfinished, tmp_path / "fresh" / "dit.npz"):
        assert main(["sample", str(model), "--out", str(out), *given]) == 0
    assert unfinished.read_bytes() == (tmp_path / "fresh" / "dit.npz").read_bytes()


def test_two_processes_draw_what_one_draws(guided: Path, model: Path, autoencoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "together.npz"
    given = ["--autoencoder", str(autoencoder), "--guidance", "4", *FEW]
    torchrun(2, "study.interchange", "sample", str(model), "--out", str(out), *given)
    with np.load(out) as mine, np.load(guided) as theirs:
        assert abs(mine["arr_0"].astype(int) - theirs["arr_0"].astype(int)).max() <= 1
        np.testing.assert_array_equal(mine["arr_1"], theirs["arr_1"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ([], "this network makes latents: name the autoencoder"),
        (["--autoencoder", "/no/such"], "autoencoder='/no/such' is not valid"),
        (["--autoencoder", "AE", "--steps", "many"], "steps='many' is not valid"),
        (["--autoencoder", "AE", "--sampler", "heun"], "sampler"),
        (["--autoencoder", "AE", "--guidance", "-1"], "guidance=-1.0 is not valid"),
        (["--autoencoder", "AE", "--count", "0"], "count=0 is not valid"),
        (["--autoencoder", "AE", "--out", "x.png"], "must end in .npz"),
    ],
)
def test_bad_words_are_refused_in_one_line(
    change: list[str],
    told: str,
    model: Path,
    autoencoder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(autoencoder) if word == "AE" else word for word in change]
    assert main(["sample", str(model), "--out", str(tmp_path / "x.npz"), "--device", "cpu", *given]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return finished([*SMALL, f"results={tmp_path_factory.mktemp('results')}"])


def test_a_run_is_exported_bit_exactly_with_its_card(run: RunDirectory, tmp_path: Path) -> None:
    out = tmp_path / "ours"
    assert main(["export", str(run.path), str(out)]) == 0
    checkpoint = CheckpointFolder(run.checkpoints, run.identity).load(48)
    found = load_file(out / "model.safetensors")
    averaged = {
        name.removeprefix("ema/0.99/"): v for name, v in checkpoint.tensors.items() if name.startswith("ema/0.99/")
    }
    assert found.keys() == averaged.keys()
    assert all(torch.equal(found[name], value) for name, value in averaged.items())
    network, model = load_model(out)
    official = build("dit-tiny", depth=1, width=16, heads=2)
    official.load_reference_state_dict(found)
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([10, 900]), torch.tensor([3, 4])
    with torch.no_grad():
        assert torch.equal(network(x, t, y), official.eval()(x, t, y))
    card = (out / "README.md").read_text(encoding="utf-8")
    for told in (run.identity, "digits8", "Apache-2.0", "val_loss", "load_model", "lr: 0.002", "average: 0.99"):
        assert told in card
    assert model.origin["images trained on"] == 48
    assert main(["export", str(run.path), str(tmp_path / "earlier"), "--images", "40"]) == 0
    assert load_model(tmp_path / "earlier")[1].origin["images trained on"] == 40
    assert "None are recorded" in (tmp_path / "earlier" / "README.md").read_text(encoding="utf-8")


def test_an_exported_run_is_imported_and_sampled_as_any_checkpoint(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", run.identity, str(tmp_path / "ours"), "--results", str(run.path.parents[1])]) == 0
    source = tmp_path / "ours" / "model.safetensors"
    given = ["--backbone", "dit-tiny", "--set", "depth=1", "width=16", "heads=2", "--out", str(tmp_path / "again")]
    assert main(["import", str(source), *given]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == source.read_bytes()
    assert main(["sample", str(tmp_path / "ours"), "--out", str(tmp_path / "x.npz"), *FEW]) == 0
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == "100 % of 5 samples of this process"
    assert len(told) == len(set(told)) > 5
    with np.load(tmp_path / "x.npz") as file:
        assert file["arr_0"].shape == (5, 8, 8, 3)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing", "OUT"], "run='nothing' is not valid"),
        (["RUN", "OUT", "--ema", "0.5"], "ema=0.5 is not valid"),
        (["RUN", "OUT", "--images", "7"], "images=7 is not valid"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    arguments: list[str], told: str, run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"RUN": str(run.path), "OUT": str(tmp_path / "out")}
    assert main(["export", *(places.get(word, word) for word in arguments)]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_without_checkpoints_is_refused(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "runs" / run.identity
    shutil.copytree(run.path, copy, ignore=shutil.ignore_patterns("checkpoint"))
    assert main(["export", str(copy), str(tmp_path / "out")]) == 2
    assert "has no whole checkpoint" in capsys.readouterr().err
