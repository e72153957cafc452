"""What the training loop adds to bare forward + backward + AdamW of the same network.

    python benchmarks/train_overhead.py [--rounds 100] [--steps 1] [--threads 1] [backbone ...]

Both sides run in one process, in turns, on networks with the same weights; the bare side repeats one
prepared batch and does nothing else. Reported: median time per step of each, and the median and
quartiles of the ratio within a round, so that a busy machine slows both sides of a ratio alike.

Then, for every kind of embedded data set, what of a dit-tiny step (the shortest there is) goes into getting its
images and labels: indexing resident tensors, and bytes to floats. Loading would show here if it showed anywhere.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from models import named_sizes
from study.allocator import keep_freed_memory
from study.compose import resolve
from study.optimizer import new_optimizer
from study.run import pick_device
from study.train import Trainer, new_network

CLAIM = 0.05
DATA_CLAIM = 0.01
DATA = ("digits8", "glyphs16", "glyphtex32", "photos16")
FEW = ["data.count=2000", "data.heldout=64", "data.reference=64"]  # a larger set is no slower to index


def bare_step(trainer: Trainer) -> Callable[[], None]:
    """Forward, backward and fused AdamW on one prepared batch, as anyone would write them."""
    config = trainer.config
    network = new_network(config).to(trainer.device)
    optimizer = new_optimizer(network, config.train)
    batch = trainer.draws.batch(network, 0, config.train.batch)
    x_t = trainer.process.add_noise(batch.x0, batch.t, batch.noise)

    def step() -> None:
        loss = ((network(x_t, batch.t, batch.y) - batch.noise) ** 2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def seconds(step: Callable[[], None], steps: int, device: torch.device) -> float:
    """Per step: CPU time of the process on a CPU, which other processes do not disturb; wall time on a GPU."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (clock() - start) / steps


def measure(backbone: str, rounds: int, steps: int, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Seconds per step of the loop and of the bare step, (rounds,) each."""
    config = resolve([f"backbone={backbone}", "train.images=1_000_000_000", f"machine.device={device}"])
    trainer = Trainer(config, device)
    bare = bare_step(trainer)
    for step in (trainer.step, bare):
        seconds(step, 5, device)  # warm up
    loop_times, bare_times = np.empty(rounds), np.empty(rounds)
    for number in range(rounds):
        sides = [(loop_times, trainer.step), (bare_times, bare)]
        for times, step in sides if number % 2 else reversed(sides):
            times[number] = seconds(step, steps, device)
    return loop_times, bare_times


def share_of_data(data: str, rounds: int, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of getting a batch's images and labels, and of the whole step, (rounds,) each."""
    few = [] if data == "digits8" else FEW
    trainer = Trainer(resolve([f"data={data}", *few, "train.images=1_000_000_000"]), device)
    draws, seen = trainer.draws, iter(range(0, 10**9, 64))

    def batch() -> None:
        index = draws._indices(next(seen), 64).to(device)
        draws.images.to_float(draws.images.images[index])
        draws.images.labels[index]

    for step in (trainer.step, batch):
        seconds(step, 5, device)
    pairs = [(seconds(batch, 20, device), seconds(trainer.step, 1, device)) for _ in range(rounds)]
    fetching, whole = np.array(pairs).T
    return fetching, whole


def report_overhead(name: str, rounds: int, steps: int, device: torch.device) -> None:
    loop, bare = measure(name, rounds, steps, device)
    ratios = loop / bare - 1
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    verdict = "" if middle < CLAIM else f"  above the claimed {CLAIM:.0%}"
    print(
        f"{name:16s} {1e3 * np.median(bare):9.2f} {1e3 * np.median(loop):9.2f} {middle:9.1%}  "
        f"{low:.1%}..{high:.1%}{verdict}"
    )


def report_data(name: str, rounds: int, device: torch.device) -> None:
    fetching, whole = share_of_data(name, rounds, device)
    share = float(np.median(fetching / whole))
    verdict = "" if share < DATA_CLAIM else f"  above the claimed {DATA_CLAIM:.0%}"
    print(f"{name:16s} {1e3 * np.median(fetching):9.3f} {1e3 * np.median(whole):9.2f} {share:9.2%}{verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backbones", nargs="*", default=[name for name in named_sizes() if name.endswith("-tiny")])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1, help="steps in a row on each side of a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    print(f"device {device}, {options.threads} threads, allocator: {keep_freed_memory()}, batch 64, digits8")
    print(f"{'backbone':16s} {'bare ms':>9s} {'loop ms':>9s} {'overhead':>9s}  quartiles")
    for name in options.backbones:
        report_overhead(name, options.rounds, options.steps, device)
    print(f"{'data, dit-tiny':16s} {'fetch ms':>9s} {'loop ms':>9s} {'share':>9s}")
    for name in DATA:
        report_data(name, max(3, options.rounds // 5), device)


if __name__ == "__main__":
    main()
