"""Latents through SLURM: encoded by tasks on two nodes; trained on, sampled, decoded and scored by jobs of two."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from study.config import backbone_name
from study.latents.command import main as encode
from study.results import read_rows
from study.run import run
from study.run_directory import RunDirectory, Status, load_config, read_curve
from tests.slurm.cluster import Cluster
from tests.slurm.disturbed import PATIENCE, ROOT, command
from tests.study.latents.tiny import contents, save_autoencoder, words

pytest.importorskip("diffusers")

BACKBONES = ("dit-tiny", "diffussm-tiny", "dis-tiny", "unet-tiny")
SWEEP = """\
defaults: {{data: latents, process: dit, train: quick}}
overrides:
  data.path: {latents}
  train.images: 32
  train.batch: 8
  train.validate_images: 4
  train.validate_bins: 2
  log.every: 8
  sample.count: 4
  sample.sampler.steps: 3
  sample.sampler.clip: false
  score.metrics: [swd]
  log.save_samples: true
  machine.threads: 1
  results: {results}
axes:
  backbone: [{backbones}]
launcher:
  name: slurm
  tasks_per_node: 2
  time: 30
  wait: true
  setup: [export MASTER_ADDR=127.0.0.1 GLOO_SOCKET_IFNAME=lo OMP_NUM_THREADS=1]  # only SLURM knows the nodes' names
"""


def test_encoded_by_tasks_trained_and_scored_by_jobs(cluster: Cluster, tmp_path: Path) -> None:
    autoencoder = save_autoencoder(tmp_path / "autoencoder")
    latents, here = tmp_path / "latents", tmp_path / "here"
    srun = ["srun", "--nodes=2", "--ntasks=2", sys.executable, "-m", "study.latents", "encode"]
    environment = {**cluster.environment, "OMP_NUM_THREADS": "1"}
    subprocess.run([*srun, *words(latents, autoencoder)], cwd=ROOT, env=environment, check=True, timeout=PATIENCE)
    assert encode(words(here, autoencoder)) == 0
    assert contents(latents) == contents(here)

    file = tmp_path / "latent_study.yaml"
    results = tmp_path / "results"
    file.write_text(SWEEP.format(latents=latents, results=results, backbones=", ".join(BACKBONES)), encoding="utf-8")
    done = command("study.sweep", str(file), SLURM_CONF=str(cluster.conf))
    assert done.returncode == 0, done.stdout + done.stderr
    runs = [RunDirectory(results, path.name) for path in (results / "runs").iterdir()]
    assert len(runs) == len(BACKBONES)
    for each in runs:
        attempts = json.loads(each.provenance.read_text(encoding="utf-8"))
        assert [attempt["ranks"] for attempt in attempts] == ["2"]
        assert "swd@4" in {row.metric for row in read_rows(each.rows)}
        with np.load(each.samples / "adm.npz") as samples:
            assert samples["arr_0"].shape == (4, 64, 64, 3)
    same_curve_as_alone(runs, tmp_path / "alone")


def same_curve_as_alone(runs: list[RunDirectory], results: Path) -> None:
    """Within rounding."""
    configs = {directory: load_config(directory.config) for directory in runs}
    theirs, config = next(pair for pair in configs.items() if backbone_name(pair[1].backbone) == "diffussm")
    alone = replace(config, results=str(results))
    assert run(alone).status is Status.DONE
    for point, other in zip(read_curve(theirs.curve), read_curve(RunDirectory.of(alone).curve), strict=True):
        assert point == pytest.approx(other, rel=1e-5)
