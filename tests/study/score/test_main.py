"""The command line on npz files, folders, run ids and data sets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from study.compose import resolve
from study.data import DataConfig, load
from study.run_directory import RunDirectory
from study.score.__main__ import main
from tests.study.score.test_pictures import save_pngs


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def test_npz_against_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = load(DataConfig("digits8"), "heldout")
    np.savez(tmp_path / "samples.npz", images=real.images[:200].numpy(), labels=real.labels[:200].numpy())
    out = tmp_path / "scores.json"
    assert main([str(tmp_path / "samples.npz"), "digits8", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.index("real, held out") < printed.index("samples.npz")  # the floor comes first
    found = {one["metric"]: one for one in json.loads(out.read_text())}
    assert found["agreement_digits8@200"]["value"] > 0.95
    assert found["fd_digits8@200"]["protocol_id"].startswith("fd_digits8-")


def test_folder_against_folder_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_pngs(tmp_path / "a", images[:15])
    save_pngs(tmp_path / "b", images[15:])
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--metrics", "swd", "fid"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "swd@15" in printed
    assert "real, held out │ │ n/a │ │ unknown" in printed  # never left out in silence
    assert printed.index("real, held out") < printed.index("swd@15")
    assert "fid@15 │ n/a" in printed


def test_run_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run directory as a run leaves it, with real images in the place of its samples."""
    config = resolve(["backbone=dit-tiny", "data=digits8", "train=quick", "sample.count=200", f"results={tmp_path}"])
    directory = RunDirectory.of(config)
    directory.create(config)
    directory.samples.mkdir()
    real = load(DataConfig("digits8"), "heldout")
    for start in (0, 100):
        part = slice(start, start + 100)
        file = directory.samples / f"{start:06d}-{start + 100:06d}.npz"
        np.savez(file, images=real.images[part].numpy(), labels=real.labels[part].numpy())
    assert main([directory.identity, "--results", str(tmp_path), "--metrics", "agreement", "fd", "--n", "200"]) == 0
    assert f"{directory.identity}" in capsys.readouterr().out
    (directory.samples / "000100-000200.npz").unlink()  # half of them would have been scored as if they were all
    assert main([directory.identity, "--results", str(tmp_path), "--metrics", "fd"]) == 2
    assert "lacks samples 100..199" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.npz", "digits8"], "nowhere.npz"),
        (["digits8/heldout", "digits8", "--metrics", "fda"], "fda"),
        (["digits8/heldout", "digits8", "--n", "5000"], "5000"),
        (["digits8/heldout", "digits8", "--n", "0"], "heldout=0"),
        (["digits8/heldout", "digits8", "--n", "-3"], "heldout=-3"),
        (["digits8/heldout", "digits8", "--draws", "0"], "draws=0"),
        (["digits8/heldout", "digits8", "--device", "gpu"], "device='gpu'"),
        (["digits8/heldout", "digits8", "--metrics", "swd", "--n", "20", "--out", "/nowhere/s.json"], "/nowhere"),
        (["digits8/test", "digits8"], "split"),
        (["digits8"], "REFERENCE"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.splitlines()[-1].startswith("error: ")
