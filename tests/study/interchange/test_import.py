"""Official checkpoints become model folders bit for bit, whatever surrounds their weights; anything else is refused."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models import build
from models.unet import UNet
from study.interchange.command import main
from study.interchange.fitting import config_of, import_checkpoint
from study.interchange.model_folder import load_model
from tests.parity_arrays import assert_forward, load_parity
from tests.study.interchange.checkpoints import (
    FIELDS,
    LDM,
    parity_weights,
    pipeline_checkpoint,
    save,
    training_checkpoint,
    words,
)


def imported(source: Path, out: Path, name: str, *more: str) -> int:
    backbone, fields = FIELDS[name]
    return main(["import", str(source), "--backbone", backbone, "--out", str(out), "--set", *words(fields), *more])


def assert_bits(out: Path, weights: dict[str, Tensor]) -> None:
    """The same names, and of every array the same bytes."""
    found = load_file(out / "model.safetensors")
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        assert found[name].numpy().tobytes() == value.numpy().tobytes(), name


@pytest.mark.parametrize("name", FIELDS)
def test_reference_names_round_trip_bit_exactly_and_compute_the_same(name: str, tmp_path: Path) -> None:
    parity = load_parity(name)
    assert imported(save(tmp_path / "official.pt", parity.params), tmp_path / "model", name) == 0
    assert_bits(tmp_path / "model", parity.params)
    network, _ = load_model(tmp_path / "model")
    with torch.no_grad():
        assert_forward(
            network(parity.inputs["x"], parity.inputs["t"], parity.inputs.get("y")), parity.outputs["forward"]
        )
    again = tmp_path / "model" / "model.safetensors"
    assert imported(again, tmp_path / "again", name) == 0
    assert_bits(tmp_path / "again", parity.params)


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_training_checkpoints_give_their_average_whatever_wraps_it(wrapper: str, tmp_path: Path) -> None:
    weights = parity_weights("dit_p2")
    tree = training_checkpoint({wrapper + name: value for name, value in weights.items()})
    source = save(tmp_path / "0400000.pt", tree)
    assert imported(source, tmp_path / "average", "dit_p2") == 0
    assert_bits(tmp_path / "average", weights)
    assert imported(source, tmp_path / "last", "dit_p2", "--weights", "last") == 0
    assert_bits(tmp_path / "last", {name: value + 1 for name, value in weights.items()})


def test_half_precision_and_safetensors_are_read(tmp_path: Path) -> None:
    weights = {name: value.half() for name, value in parity_weights("dis_cond_p2").items()}
    save_file(weights, tmp_path / "half.safetensors")
    assert imported(tmp_path / "half.safetensors", tmp_path / "model", "dis_cond_p2") == 0
    assert_bits(tmp_path / "model", {name: value.float() for name, value in weights.items()})


@pytest.fixture(scope="module")
def latent_unet() -> UNet:
    torch.manual_seed(0)
    network = UNet(config_of("unet-tiny", {**LDM, "width": 64}))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return network


@pytest.mark.parametrize("which", ["average", "last"])
def test_a_latent_diffusion_pipeline_gives_network_and_label_embedding(
    which: str, latent_unet: UNet, tmp_path: Path
) -> None:
    weights = {name: value.clone() for name, value in latent_unet.state_dict().items()}
    labels = weights.pop("label_context.weight")
    source = save(tmp_path / "model.ckpt", pipeline_checkpoint(weights, labels))
    out = tmp_path / "model"
    given = ["--backbone", "unet-tiny", "--out", str(out), "--set", *words({**LDM, "width": 64}), "--weights", which]
    assert main(["import", str(source), *given]) == 0
    offset = 0 if which == "average" else 1
    assert_bits(out, {**{name: value + offset for name, value in weights.items()}, "label_context.weight": labels})
    model = load_model(out)[1]
    assert (model.layout, model.process.schedule) == ("ldm", "ldm")  # type: ignore[union-attr]


def test_sit_runs_time_the_other_way(tmp_path: Path) -> None:
    """Its velocity points from noise to image, at 1 - t; the half of its head that is meant for variances is unused."""
    parity = load_parity("dit_p2")
    source = save(tmp_path / "sit.pt", training_checkpoint(parity.params))
    assert imported(source, tmp_path / "sit", "dit_p2", "--layout", "sit") == 0
    assert_bits(tmp_path / "sit", parity.params)
    network, model = load_model(tmp_path / "sit")
    official = build("dit-tiny", **{**FIELDS["dit_p2"][1], "label_std": 0.02})
    official.load_reference_state_dict(parity.params)
    x, y = parity.inputs["x"], parity.inputs["y"]
    t = torch.full((len(x),), 300.0)
    with torch.no_grad():
        torch.testing.assert_close(network(x, t, y), -official(x, torch.full((len(x),), 0.7), y)[:, :4])
    assert not network.config.learn_sigma
    assert type(model.process).__name__ == "FlowConfig"


def test_partial_and_foreign_checkpoints_are_refused_by_every_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = parity_weights("dit_p2")
    gone = [name for name in weights if name.startswith("blocks.2.")]
    wrong: dict[str, Any] = {name: value for name, value in weights.items() if name not in gone}
    wrong["extra.weight"] = torch.ones(2)
    wrong["pos_embed"] = torch.ones(1, 4, 48)
    assert imported(save(tmp_path / "wrong.pt", wrong), tmp_path / "model", "dit_p2") == 2
    first, *listed = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: {tmp_path / 'wrong.pt'} is not a DiT of this size: {len(gone)} missing (blocks.2.")
    assert set(listed) == {
        *(f"  missing: {name}" for name in gone),
        "  unexpected: extra.weight",
        "  of another shape: pos_embed: (1, 4, 48), must be (1, 16, 48)",
    }
    assert not (tmp_path / "model").exists()


class Malice:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("place", ["zip", "zip beside weights", "old format"])
def test_a_malicious_pickle_is_refused_and_does_not_run(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, source = tmp_path / "ran", tmp_path / "evil.pt"
    evil = Malice(str(target))
    tree = {"ema": parity_weights("dit_p2"), "args": evil} if "beside" in place else evil
    if place == "old format":
        source.write_bytes(pickle.dumps(tree))
    else:
        torch.save(tree, source)
    assert imported(source, tmp_path / "model", "dit_p2") == 2
    error = capsys.readouterr().err
    assert str(source) in error
    assert "refused" in error
    assert not target.exists()
    assert not (tmp_path / "model").exists()
    if place != "old format":
        assert "system" in error  # what it wanted called, by name


def test_what_training_codes_leave_beside_weights_is_not_run(tmp_path: Path) -> None:
    """A checkpoint of Lightning's names its callbacks' classes: read as nothing, though Lightning is not installed."""
    source = tmp_path / "lightning.ckpt"
    code = f"""
import sys, types, torch
package, inner = types.ModuleType("pytorch_lightning"), types.ModuleType("pytorch_lightning.callbacks")
class ModelCheckpoint:
    def __init__(self): self.best = 1
ModelCheckpoint.__module__ = "pytorch_lightning.callbacks"
ModelCheckpoint.__qualname__ = "ModelCheckpoint"
inner.ModelCheckpoint = ModelCheckpoint
sys.modules.update({{"pytorch_lightning": package, "pytorch_lightning.callbacks": inner}})
weights = torch.load({str(tmp_path / "weights.pt")!r})
torch.save({{"state_dict": weights, "callbacks": {{ModelCheckpoint: ModelCheckpoint()}}}}, {str(source)!r})
"""
    weights = parity_weights("dis_uncond_p4")
    save(tmp_path / "weights.pt", weights)
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "pytorch_lightning" not in sys.modules
    assert imported(source, tmp_path / "model", "dis_uncond_p4") == 0
    assert_bits(tmp_path / "model", weights)
    assert "pytorch_lightning" not in sys.modules


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "is not a file"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_bytes(b"no checkpoint at all"), "refused|cannot be read"),
        (lambda path: save(path, {"epoch": 3}), "has no tensors"),
        (lambda path: save(path, training_checkpoint({}) | {"ema": {}, "model": {}}), "has no tensors"),
        (lambda path: truncated(save(path, parity_weights("dit_p2"))), "cannot be read"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "cannot be read"),
        (
            lambda path: save(path, parity_weights("dit_p2") | {"pos_embed": torch.full((1, 16, 48), torch.nan)}),
            "finite",
        ),
    ],
    ids=["absent", "empty", "text", "no weights", "empty weights", "truncated", "empty archive", "nan"],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(
    make: Any, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "file.pt"
    make(source)
    assert imported(source, tmp_path / "model", "dit_p2") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert any(part in error for part in told.split("|"))
    assert not (tmp_path / "model").exists()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--backbone", "dit-xs"], "unknown backbone 'dit-xs'"),
        (["--backbone", "dit-tiny", "--set", "patch=2"], "dit-tiny has no field patch"),
        (["--backbone", "dit-tiny", "--set", "size"], "--set size is not valid: must be FIELD=VALUE"),
        (["--backbone", "dit-tiny", "--layout", "adm"], "does not go with this backbone: must be dit"),
        (["--backbone", "dit-tiny", "--layout", "dita"], "layout='dita' is not valid: did you mean dit"),
        (["--backbone", "dis-tiny", "--layout", "sit"], "does not go with this backbone"),
        (["--backbone", "diffussm-tiny"], "nobody else publishes DiffuSSMConfig weights"),
        (["--backbone", "dit-tiny", "--set", "depth=0"], "depth=0 is not valid"),
    ],
)
def test_bad_words_are_refused_in_one_line(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save(tmp_path / "dit.pt", parity_weights("dit_p2"))
    assert main(["import", str(source), "--out", str(tmp_path / "model"), *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_a_model_folder_is_not_overwritten_and_damage_is_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    source = save(tmp_path / "dit.pt", parity_weights("dit_p2"))
    assert imported(source, out, "dit_p2") == 0
    assert imported(source, out, "dit_p2") == 2
    assert "holds a model already" in capsys.readouterr().err
    assert main(["show", str(out)]) == 0
    told = capsys.readouterr().out
    assert "whole by its checksum" in told
    assert "dit.pt" in told
    content = bytearray((out / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (out / "model.safetensors").write_bytes(content)
    assert main(["show", str(out)]) == 2
    assert "is damaged: its checksum" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"backbone": {"width": 10**12}}, "width=1000000000000 is not valid: must be within the"),
        ({"backbone": {"depth": 2**31}}, "depth=2147483648 is not valid: must be within the"),
        ({"backbone": {"depth": 2}}, "numbers of the network="),
        ({"backbone": {"mlp_ratio": 1e308}}, "mlp_ratio=1e+308 is not valid"),
        ({"origin": []}, "origin and metrics must be mappings"),
        ({"metrics": [1]}, "origin and metrics must be mappings"),
    ],
)
def test_a_description_of_another_network_is_refused_before_that_is_built(
    change: dict[str, Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert imported(save(tmp_path / "dit.pt", parity_weights("dit_p2")), tmp_path / "model", "dit_p2") == 0
    facts = tmp_path / "model" / "model.json"
    tree = json.loads(facts.read_text(encoding="utf-8"))
    for key, value in change.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
    facts.write_text(json.dumps(tree), encoding="utf-8")
    capsys.readouterr()
    assert main(["show", str(tmp_path / "model")]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_the_layout_of_another_backbone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imported(save(tmp_path / "dis.pt", parity_weights("dis_cond_p2")), tmp_path / "model", "dis_cond_p2") == 0
    facts = tmp_path / "model" / "model.json"
    facts.write_text(facts.read_text(encoding="utf-8").replace('"layout": "dis"', '"layout": "sit"'), encoding="utf-8")
    assert main(["show", str(tmp_path / "model")]) == 2
    assert "layout='sit' does not go with backbone dis" in capsys.readouterr().err


def test_the_api_is_one_call(tmp_path: Path) -> None:
    source = save(tmp_path / "dit.pt", parity_weights("dit_p2"))
    model, network = import_checkpoint(source, "dit-tiny", tmp_path / "model", FIELDS["dit_p2"][1])
    assert not network.averaged
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    for told in ("CC-BY-NC 4.0", "dit.pt", "load_model", "width: 48", f"{model.backbone.macs().total / 1e9:.4g} GMACs"):
        assert told in card
