"""Predicted training memory against what a fresh process really used."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from models import named_config
from study.cost.memory import Training, example_inputs, network, training_memory

# The allocator is told to hand freed blocks back, so that resident memory follows what is alive.
CHILD = """
import resource, sys
import torch
from models import named_config
from study.cost.memory import Training, example_inputs, network
torch.set_num_threads(1)
name, batch, precision, depth = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
warm = named_config(name.split("-")[0] + "-tiny")  # loads the libraries and compiles what is compiled on first use
Training(network(warm), precision).step(*example_inputs(warm, 1, "cpu"))
page = resource.getpagesize()
before = int(open("/proc/self/statm").read().split()[1]) * page
config = named_config(name, **({"depth": depth} if depth else {}))
training = Training(network(config), precision)
for _ in range(2):
    training.step(*example_inputs(config, batch, "cpu"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and steers glibc")
@pytest.mark.parametrize(
    ("name", "batch", "precision", "depth"),
    [
        ("dit-tiny", 768, "fp32", 0),
        ("dit-s/8", 8, "fp32", 0),
        ("dit-s/8", 8, "bf16", 0),
        ("unet-tiny", 384, "fp32", 0),
        ("diffussm-tiny", 384, "fp32", 0),
        ("dis-tiny", 96, "fp32", 14),
    ],
)
def test_peak_memory_is_predicted_within_a_tenth(name, batch, precision, depth):
    config = named_config(name, **({"depth": depth} if depth else {}))
    predicted = training_memory(config, batch, precision).peak
    command = [sys.executable, "-c", CHILD, name, str(batch), precision, str(depth)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=True)
    measured = int(done.stdout)
    print(f"{name} {batch} {precision}: predicted {predicted / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB")
    assert measured == pytest.approx(predicted, rel=0.10)


def test_state_is_weights_moments_and_averages():
    config = named_config("dit-tiny")
    weights = sum(p.nbytes for p in network(config).parameters() if p.requires_grad)
    found = training_memory(config, 4, averages=2)
    assert found.gradients == weights
    assert found.optimiser == pytest.approx(2 * weights, rel=0.01)
    assert found.averages == pytest.approx(2 * found.parameters, rel=0.01)


def test_activations_grow_with_the_batch_and_shrink_with_precision():
    config = named_config("dit-tiny")
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
