"""Predicted training memory against what a fresh process really used."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from models import named_config
from study.cost.memory import Training, example_inputs, network, training_memory

# name, batch, precision, depth (0: the size's own)
CASES = [
    ("dit-tiny", 768, "fp32", 0),
    ("dit-s/8", 8, "bf16", 0),
    ("unet-tiny", 384, "fp32", 0),
    ("diffussm-tiny", 256, "fp32", 0),
    ("dis-tiny", 160, "fp32", 8),
]

# Torch is imported once; every case lives in a fork, whose own peak begins at what it inherits.
# The allocator is told to hand freed blocks back, so that resident memory follows what is alive.
CHILD = """
import json, os, resource, sys
import torch
from models import named_config
from study.cost.memory import Training, example_inputs, network
from study.progress import peak_memory_mib
torch.set_num_threads(1)

def measure(name, batch, precision, depth):
    warm = named_config(name.split("-")[0] + "-tiny")
    Training(network(warm), precision).step(*example_inputs(warm, 1, "cpu"))  # what is loaded on first use
    before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
    config = named_config(name, **({"depth": depth} if depth else {}))
    training = Training(network(config), precision)
    training.step(*example_inputs(config, 1, "cpu"))  # creates the moments
    training.step(*example_inputs(config, batch, "cpu"))
    return round(peak_memory_mib(torch.device("cpu")) * 2**20) - before

for case in json.loads(sys.argv[1]):
    if os.fork() == 0:
        print(measure(*case), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def measured() -> dict[tuple[object, ...], int]:
    """Bytes by case, above what a process holds that has already trained the smallest network of the kind."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CHILD, json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=True)
    return dict(zip(CASES, map(int, done.stdout.split()), strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and steers glibc")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[1]} {case[2]}")
def test_peak_memory_is_predicted_within_a_tenth(case, measured):
    name, batch, precision, depth = case
    predicted = training_memory(named_config(name, **({"depth": depth} if depth else {})), batch, precision).peak
    print(f"{name} {batch} {precision}: predicted {predicted / 2**20:.0f} MiB, measured {measured[case] / 2**20:.0f}")
    assert measured[case] == pytest.approx(predicted, rel=0.10)


def test_state_is_weights_moments_and_averages():
    config = named_config("dit-tiny")
    weights = sum(p.nbytes for p in network(config).parameters() if p.requires_grad)
    found = training_memory(config, 4, averages=2)
    assert found.gradients == weights
    assert found.optimiser == pytest.approx(2 * weights, rel=0.01)
    assert found.averages == pytest.approx(2 * found.parameters, rel=0.01)


def test_activations_grow_with_the_batch_and_shrink_with_precision():
    config = named_config("dit-tiny", depth=1)
    four, eight = (training_memory(config, batch).activations for batch in (4, 8))
    assert eight == pytest.approx(2 * four, rel=0.05)
    assert training_memory(config, 64, "bf16").activations < 0.8 * training_memory(config, 64).activations


def test_fake_tensors_live_exactly_as_long_as_real_ones():
    """Saved-for-backward bytes measured by autograd's own hooks on a real forward pass, each memory once."""
    config = named_config("dit-tiny")
    training = Training(network(config), "fp32")
    own = {p.untyped_storage().data_ptr() for p in training.model.parameters()}
    saved: dict[int, int] = {}

    def pack(x):
        if x.untyped_storage().data_ptr() not in own:
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = training.forward(*example_inputs(config, 16, "cpu"))
    assert loss.requires_grad
    assert training_memory(config, 16).activations == pytest.approx(sum(saved.values()), rel=0.05)


@pytest.mark.parametrize(("batch", "precision", "message"), [(0, "fp32", "batch=0"), (1, "fp8", "precision='fp8'")])
def test_bad_requests_are_refused(batch, precision, message):
    with pytest.raises(ValueError, match=message):
        training_memory(named_config("dit-tiny"), batch, precision)
