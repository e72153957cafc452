"""Checkpoints and npz archives, ours and everybody's, damaged or hostile: read as they are or refused; nothing runs."""

from __future__ import annotations

import io
import json
import pickle
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_bytes

from study.checkpoint import Checkpoint, CheckpointFolder, DamagedCheckpointError
from study.interchange.reading import read_checkpoint
from study.sample import load_samples
from study.score.pictures import read_npz
from tests.fuzz.mutations import HOSTILE, Payload, as_json, bytes_like, place, scaled, trees_like, works_or_refuses

WEIGHTS = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(3, dtype=torch.bfloat16)}
FACTS = {"steps": 3, "data": {"train": "0" * 64}}
OWNER = "0123456789abcdef"


@cache
def own() -> dict[str, bytes]:
    """A checkpoint as a run writes it."""
    with tempfile.TemporaryDirectory() as name:
        CheckpointFolder(Path(name), OWNER).save(Checkpoint(64, WEIGHTS, FACTS))
        return {path.name: path.read_bytes() for path in Path(name).iterdir()}


RECORD, TENSORS = "000000000064.json", "000000000064.safetensors"


def restored(folder: Path) -> Checkpoint | None:
    checkpoints = CheckpointFolder(folder, OWNER)
    checkpoints.newest_facts()
    return checkpoints.restore_newest(lambda checkpoint: None)


@scaled(40)
@given(st.deferred(lambda: bytes_like([own()[TENSORS]])))
def test_tensors_of_our_checkpoints(data: bytes) -> None:
    """Whatever happens to one byte of them is seen."""
    with place({**own(), TENSORS: data}) as folder:
        assert restored(folder) is None or data == own()[TENSORS]


@scaled(40)
@given(st.deferred(lambda: bytes_like([own()[RECORD]])))
def test_records_of_our_checkpoints_as_text(data: bytes) -> None:
    with place({**own(), RECORD: data}) as folder:
        found = restored(folder)
        assert found is None or found.facts == FACTS


@scaled(40)
@given(st.deferred(lambda: trees_like([json.loads(own()[RECORD])])))
def test_records_of_our_checkpoints_as_trees(tree: Any) -> None:
    """Without the right seal no record is believed; with it, one of another shape still breaks nothing."""
    with place({**own(), RECORD: as_json(tree)}) as folder:
        found = restored(folder)
        assert found is None or found.facts == FACTS


@scaled(20)
@given(st.deferred(lambda: trees_like([json.loads(own()[RECORD])["content"]])))
def test_sealed_records_of_another_shape(content: Any) -> None:
    from study.checkpoint import _digest

    with place({**own(), RECORD: as_json({"content": content, "sha256": _digest(content)})}) as folder:
        works_or_refuses(lambda: CheckpointFolder(folder, OWNER).load(64), DamagedCheckpointError)
        restored(folder)


def torch_bytes(value: Any, **how: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **how)
    return file.getvalue()


@cache
def foreign() -> list[bytes]:
    """Torch files new and old, plain and with what training codes save beside."""
    from argparse import Namespace

    plain = {"model": WEIGHTS, "ema": WEIGHTS, "args": Namespace(lr=1.0)}
    return [torch_bytes(WEIGHTS), torch_bytes(plain), torch_bytes(WEIGHTS, _use_new_zipfile_serialization=False)]


@cache
def hostile() -> list[bytes]:
    payloads = [{"model": Payload()}, [Payload()], Payload()]
    return [
        *(torch_bytes(value) for value in payloads),
        *(torch_bytes(value, _use_new_zipfile_serialization=False) for value in payloads),
        pickle.dumps(Payload()),
    ]


def read_once(name: str, data: bytes, read: Callable[[Path], object], *refusals: type[Exception]) -> bool:
    with place({name: data}) as folder:
        return works_or_refuses(lambda: read(folder / name), *refusals)


@scaled(40)
@given(st.deferred(lambda: bytes_like([*foreign(), *hostile()])), st.sampled_from([".pt", ".ckpt", ".bin"]))
def test_torch_files(data: bytes, suffix: str) -> None:
    read_once(f"w{suffix}", data, read_checkpoint, ValueError)


@scaled(40)
@given(bytes_like([safetensors_bytes(WEIGHTS)]))
def test_safetensors_files(data: bytes) -> None:
    read_once("w.safetensors", data, read_checkpoint, ValueError)


def npz_bytes(compressed: bool = False, **arrays: Any) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


IMAGES = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
LABELS = np.array([0, 1])
ARCHIVES = [
    npz_bytes(images=IMAGES, labels=LABELS),
    npz_bytes(True, images=IMAGES, labels=LABELS),
    npz_bytes(arr_0=IMAGES.transpose(0, 2, 3, 1), arr_1=LABELS, mu=np.zeros(2), sigma=np.eye(2)),
]


@scaled(50)
@given(bytes_like(ARCHIVES))
def test_npz_archives_as_bytes(data: bytes) -> None:
    read_once("a.npz", data, read_npz, ValueError)


def _hostile_array() -> np.ndarray:
    array = np.empty(1, dtype=object)
    array[0] = Payload()
    return array


DTYPES = ("uint8", "int64", "uint16", "float32", "float64", "complex64", "bool", "S3", "U2", "datetime64[s]", "V4")


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """Well-formed ones of the wrong things: names, types, shapes, objects, members that are no arrays."""
    names = st.sampled_from(("images", "labels", "arr_0", "arr_1", "mu", "sigma", "mu_s", "sigma_s", "x", "../x"))
    arrays: dict[str, np.ndarray] = {}
    for name in draw(st.lists(names, min_size=1, max_size=5, unique=True)):
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=5)))
        arrays[name] = np.zeros(shape, draw(st.sampled_from(DTYPES)))
        if draw(st.integers(0, 5)) == 0:
            arrays[name] = _hostile_array()
    data = npz_bytes(draw(st.booleans()), **arrays)
    if draw(st.integers(0, 3)) == 0:
        file = io.BytesIO(data)
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(draw(names) + draw(st.sampled_from((".npy", ".txt", ""))), draw(st.binary(max_size=80)))
        return file.getvalue()
    return data


@pytest.mark.filterwarnings("ignore:Duplicate name")
@scaled(50)
@given(archives())
def test_npz_archives_of_other_things(data: bytes) -> None:
    read_once("a.npz", data, read_npz, ValueError)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@scaled(30)
@given(st.one_of(archives(), bytes_like(ARCHIVES)))
def test_shards_of_samples(data: bytes) -> None:
    """A damaged one is as good as none, and says so."""
    read_once("000000-000002.npz", data, lambda path: load_samples(path.parent, range(2)), ValueError)


def test_what_is_not_changed_is_read_and_what_is_hostile_is_not() -> None:
    with place(own()) as folder:
        assert restored(folder) is not None
    for data in foreign():
        assert read_once("w.pt", data, read_checkpoint)
    assert read_once("w.safetensors", safetensors_bytes(WEIGHTS), read_checkpoint)
    for data in ARCHIVES:
        assert read_once("a.npz", data, read_npz)
    for data in hostile():
        assert not read_once("w.pt", data, read_checkpoint, ValueError)
    assert not read_once("a.npz", npz_bytes(images=_hostile_array()), read_npz, ValueError)


def test_the_payload_would_have_done_it() -> None:
    try:
        pickle.loads(pickle.dumps(Payload()))
        assert HOSTILE.is_dir()
    finally:
        HOSTILE.rmdir()
