"""A set of latents of which one file was changed: a run reads what was written or refuses it, and `check` tells."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from study.data import DataConfig, Source, Split, load
from study.data.check import check
from study.latents.files import EncodingPlan, claim_plan, conclude, write_shard
from study.latents.folder import AUTOENCODER, write_record, write_reference
from tests.fuzz.mutations import as_json, bytes_like, place, scaled, trees_like, works_or_refuses

COUNTS = {"train": 5, "heldout": 3}


def plan_of(split: str) -> EncodingPlan:
    return EncodingPlan(
        data=f"glyphs16/{split}",
        images_sha256="0" * 64,
        count=COUNTS[split],
        classes=10,
        size=(2, 2),
        channels=4,
        factor=8,
        autoencoder="vae",
        autoencoder_sha256="1" * 64,
        scale=0.5,
        shard=2,
        batch=2,
    )


@cache
def whole() -> dict[str, bytes]:
    """Every file of a small set, by path; of the autoencoder only what training looks at."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        for split in COUNTS:
            plan = plan_of(split)
            claim_plan(out / split, plan)
            for number in range(plan.shards):
                part = np.array(plan.part(number))
                latents = np.tile(part.astype(np.float32)[:, None, None, None, None, None], (1, 2, 2, 4, 2, 2))
                write_shard(out / split, number, latents, part)
            conclude(out / split, plan)
        (out / AUTOENCODER).mkdir()
        (out / AUTOENCODER / "config.json").write_text("{}", encoding="utf-8")
        write_reference(out, iter([np.zeros((4, 3, 16, 16), np.uint8)]), (4, 3, 16, 16))
        write_record(out, [0, 1, 2, 3])
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@st.composite
def changed(draw: st.DrawFn) -> dict[str, bytes]:
    """One file by its name."""
    name = draw(st.sampled_from(sorted(whole())))
    data = whole()[name]
    if name.endswith(".json") and draw(st.booleans()):
        return {name: as_json(draw(trees_like([json.loads(data)])))}
    return {name: draw(bytes_like([data]))}


def read(folder: Path) -> Iterator[tuple[str, list[Any]]]:
    """All that a run sees of it."""
    config = DataConfig("latents", path=str(folder))
    for split in get_args(Split):
        source: Source = load(config, split)
        seen = source.batch(torch.arange(len(source)))
        yield split, [source.sha256, source.classes, source.labels.tolist(), seen.tolist()]


@cache
def meant() -> dict[str, list[Any]]:
    with place(whole()) as folder:
        return dict(read(folder))


@scaled(40)
@given(changed())
def test_a_run_reads_it_or_refuses(one: dict[str, bytes]) -> None:
    with place({**whole(), **one}) as folder:
        works_or_refuses(lambda: list(read(folder)), ValueError)


@scaled(40)
@given(changed())
def test_what_check_finds_whole_is_what_was_written(one: dict[str, bytes]) -> None:
    found: list[str] = []
    with place({**whole(), **one}) as folder:
        if works_or_refuses(lambda: found.extend(check(folder, "latents")[1]), ValueError) and not found:
            assert dict(read(folder)) == meant()


def test_what_is_not_changed_is_whole() -> None:
    with place(whole()) as folder:
        assert check(folder, "latents")[1] == []
        assert meant()["heldout"][2] == [0, 1, 2]
