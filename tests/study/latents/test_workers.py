"""Workers that begin and end together get in nobody's way; those that one command started end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from study.command_line import STOPPED
from study.data import DataConfig, load
from study.latents import encode as encoding
from study.latents.files import EncodingPlan
from study.latents.finish import finish
from study.lease import process_start
from tests.study.latents.tiny import contents, words

WORKERS, ROUNDS = 4, 5
DATA = DataConfig("glyphtex64", count=8, heldout=4, reference=4)


class Pooling(nn.Module):
    """Encodes in no time, so that workers meet at the end."""

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean = nn.functional.avg_pool2d(images, 8)
        return mean, torch.ones_like(mean)

    @property
    def network(self) -> Any:
        return self

    def save_pretrained(self, folder: str, safe_serialization: bool) -> None:
        Path(folder).mkdir()
        (Path(folder) / "config.json").write_text("{}")


def plan_of(split: str, shard: int = 2) -> EncodingPlan:
    images = load(DATA, split)  # type: ignore[arg-type]
    return EncodingPlan("", images.sha256, len(images), images.classes, (8, 8), 3, 8, "", "", 1.0, "float32", shard, 2)


def work(out: Path, number: int, begin: Any) -> None:
    torch.set_num_threads(1)
    autoencoder: Any = Pooling()
    begin.wait()
    for split in ("train", "heldout"):
        source = load(DATA, split)  # type: ignore[arg-type]
        encoding.encode(source, autoencoder, plan_of(split), out / split, torch.device("cpu"), number, WORKERS)
    finish(out, DATA, autoencoder)


def test_workers_that_end_together_all_end_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four over four shards, over and over: none deletes what another is writing, and nothing is left over."""
    monkeypatch.setattr(encoding, "POLL", 0.01)
    context = multiprocessing.get_context("fork")
    for split in ("train", "heldout", "reference"):
        load(DATA, split)  # type: ignore[arg-type]  # remembered, also by the workers
    found = []
    for turn in range(ROUNDS):
        out, begin = tmp_path / str(turn), context.Barrier(WORKERS)
        workers = [context.Process(target=work, args=(out, number, begin)) for number in range(WORKERS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert [worker.exitcode for worker in workers] == [0] * WORKERS
        found.append(contents(out))
    assert not [name for name in found[0] if ".tmp" in name or "claims" in name]
    assert all(each == found[0] for each in found)


def test_asked_to_stop_a_command_takes_its_workers_along(tmp_path: Path) -> None:
    arguments = [*words(tmp_path / "out", tmp_path / "nothing"), "--workers", "2"]
    with subprocess.Popen([sys.executable, "-m", "study.latents", "encode", *arguments]) as command:
        children: list[int] = []
        while len(children) < 2 and command.poll() is None:
            time.sleep(0.005)
            children = list(map(int, Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()))
        command.send_signal(signal.SIGTERM)
        code = command.wait(30)
    alive = [child for child in children if process_start(child) is not None]
    for child in alive:
        os.kill(child, signal.SIGKILL)
    assert (code, alive) == (STOPPED, [])
