"""`python -m study.bench dit-tiny diffussm-tiny --size 16 --batch 1 8 --mode forward train sample`

The first name is the baseline. Others: `scaling`, `lengths`, `compare A B`, `record`; each tells its own --help.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from models.denoiser import named_config, require
from study.bench.change import compare_folders
from study.bench.config import DTYPES, MODES, Cell, Network, Protocol, Spin, Subject
from study.bench.peers import check_peer
from study.bench.process import RefusedError
from study.bench.record import record
from study.bench.rows import Measured, lines_of
from study.bench.scaling import lengths, scaling
from study.bench.store import filled, machine_folder, save, shown, table_line
from study.bench.suite import run_suite
from study.cost.summary import at_pixels
from study.cost.table import print_table
from study.optimizer import check_precision


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m study.bench", description=__doc__.splitlines()[0])
    made.add_argument(
        "names", nargs="*", help="backbones such as dit-s/2, the first is the baseline; spin:N tries this tool"
    )
    made.add_argument("--size", nargs="+", type=int, metavar="PX", help="image sides in pixels (each backbone's own)")
    made.add_argument("--batch", nargs="+", type=int, default=[1])
    made.add_argument("--mode", nargs="+", choices=MODES, default=["forward"])
    made.add_argument("--dtype", nargs="+", choices=DTYPES, default=["fp32"])
    made.add_argument("--peer", action="append", default=[], metavar="NAME=PATH:CALLABLE", help="beside the first name")
    made.add_argument("--steps", type=int, default=20, help="of an end-to-end sample, ddim (20)")
    made.add_argument("--guidance", type=float, default=1.0, help="of a sample; other than 1 doubles its calls")
    made.add_argument("--no-memory", action="store_true", help="leave out the passes for memory and energy")
    add_settings(made)
    return made


def add_settings(made: argparse.ArgumentParser) -> None:
    """What every command that times has."""
    usual = Protocol()
    made.add_argument("--compile", action="store_true")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1")
    made.add_argument("--threads", type=int, default=1, help="of a CPU, pinned (1)")
    made.add_argument(
        "--min-samples", type=int, default=usual.min_samples, help="of a cell over all its processes (30)"
    )
    made.add_argument("--min-seconds", type=float, default=usual.min_seconds, help="likewise (3)")
    made.add_argument("--repeats", type=int, default=usual.repeats, help="processes per cell (3)")
    made.add_argument("--blocks", type=int, default=usual.blocks, help="turns per process (10)")
    made.add_argument("--seed", type=int, default=usual.seed, help="of the order of turns")
    made.add_argument("--noisy", type=float, default=usual.noisy, help="IQR / median that is flagged (0.1)")
    made.add_argument("--rejected", type=float, default=usual.rejected, help="and that is not reported (0.25)")
    made.add_argument("--out", type=Path, help="folder of results (results/bench/<this machine>)")


def protocol_of(asked: argparse.Namespace) -> Protocol:
    return Protocol(
        asked.min_samples, asked.min_seconds, asked.repeats, asked.blocks, asked.seed, asked.noisy, asked.rejected
    )


def settings_of(asked: argparse.Namespace) -> Cell:
    """A cell with everything but its subject and its place in the table."""
    try:
        device = torch.device(asked.device)
    except RuntimeError:
        device = torch.device("meta")
    at_hand = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_available())
    require(at_hand, "device", asked.device, "cpu" + ", or cuda" * torch.cuda.is_available())
    require(asked.threads <= (os.cpu_count() or 1), "threads", asked.threads, f"at most {os.cpu_count()} here")
    return Cell(Spin(1), compile=asked.compile, device=asked.device, threads=asked.threads)


def folder_of(asked: argparse.Namespace) -> Path:
    return asked.out or machine_folder(asked.device)


def cells_of(asked: argparse.Namespace) -> list[Cell]:
    """Every cell asked for, those that are compared side by side."""
    require(bool(asked.names), "names", asked.names, "one or more backbones (or scaling, lengths, compare, record)")
    require(len(set(asked.names)) == len(asked.names), "names", asked.names, "distinct")
    for text in asked.peer:
        check_peer(text)
    plain = settings_of(asked)
    for dtype in asked.dtype:
        check_precision(dtype, torch.device(asked.device))
    sizes: list[int | None] = list(asked.size or [None])
    return [
        replace(plain, subject=subject, mode=mode, batch=batch, dtype=dtype, steps=asked.steps, guidance=guidance)
        for dtype in asked.dtype
        for mode in asked.mode
        for guidance in [asked.guidance if mode == "sample" else 1.0]
        for batch in asked.batch
        for size in sizes
        for subject in subjects(asked.names, asked.peer, size)
    ]


def subjects(names: Sequence[str], peers: Sequence[str], pixels: int | None) -> list[Subject]:
    """Those of one size, the baseline first and peers next to it."""
    found: list[Subject] = [named_subject(name, pixels) for name in names]
    first = found[0]
    if not isinstance(first, Network):
        require(not peers, "peer", list(peers), "beside a backbone, the first that is named")
        return found
    return [first, *(replace(first, peer=text) for text in peers), *found[1:]]


def named_subject(name: str, pixels: int | None) -> Subject:
    if name.startswith("spin:"):
        units = name.removeprefix("spin:")
        require(units.isdigit(), "spin", name, "spin:N, N a positive number of units")
        return Spin(int(units))
    config = named_config(name)
    return Network(name, (config if pixels is None else at_pixels(config, pixels)).size)


def bench(argv: Sequence[str], console: Console) -> None:
    asked = parser().parse_args(argv)
    protocol, cells, folder = protocol_of(asked), cells_of(asked), folder_of(asked)
    memory = not asked.no_memory
    found = run_suite(cells, protocol, memory, tell, lambda part: save(folder, part, protocol))
    save(folder, found, protocol)  # again, now that the largest common batch is known
    show(found, protocol, console)
    console.print(f"{protocol.name}; every sample is in {folder}", highlight=False, soft_wrap=True)


def show(found: Sequence[Measured], protocol: Protocol, console: Console) -> None:
    lines = [table_line(line) for each in found for line in lines_of(each, protocol)]
    columns = filled(lines)
    print_table(None, columns, [[shown(name, line[name]) for name in columns] for line in lines], console)


def tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def other_parser(command: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=f"python -m study.bench {command}", description=COMMANDS[command])
    if command == "compare":
        made.add_argument("before", type=Path, metavar="A", help="folder that a measurement left")
        made.add_argument("after", type=Path, metavar="B", help="and one of the changed code, on the same machine")
        return made
    if command == "scaling":
        made.add_argument("names", nargs="*", default=["dit-s/2", "diffussm-s"], help="two or more backbones")
        made.add_argument("--side", nargs="+", type=int, default=[8, 16, 32, 64, 128], help="of the network's input")
    if command == "lengths":
        made.add_argument("--length", nargs="+", type=int, default=[64, 256, 1024, 4096, 16384])
        made.add_argument("--width", type=int, default=128)
        made.add_argument("--state", type=int, default=16)
        made.add_argument("--join", choices=("sum", "concat"), default="concat")
        made.add_argument("--form", nargs="+", default=["s4d", "s4d-textbook", "attention"])
    if command in ("scaling", "lengths"):
        made.add_argument("--batch", type=int, default=1)
        made.add_argument("--mode", choices=("forward", "train"), default="forward")
    add_settings(made)
    return made


COMMANDS = {
    "scaling": "Time against the side of the input: exponents, and where one backbone overtakes another.",
    "lengths": "The S4D layer, its textbook form and attention against sequence length.",
    "compare": "Whether a change is faster, from two folders of results.",
    "record": "Everything that results/bench/ publishes of this machine.",
}


def other(command: str, argv: Sequence[str], console: Console) -> None:
    asked = other_parser(command).parse_args(argv)
    if command == "compare":
        for line in compare_folders(asked.before, asked.after):
            console.print(line, highlight=False, soft_wrap=True)
        return
    protocol, plain, folder = protocol_of(asked), settings_of(asked), folder_of(asked)
    if command == "record":
        lines = record(plain, protocol, folder, tell)
    elif command == "scaling":
        cell = replace(plain, mode=asked.mode, batch=asked.batch)
        lines = scaling(asked.names, asked.side, cell, protocol, folder, tell)
    else:
        require(len(set(asked.form)) == len(asked.form), "form", asked.form, "distinct")
        layer = (asked.width, asked.state, asked.join)
        cell = replace(plain, mode=asked.mode, batch=asked.batch)
        lines = lengths(asked.form, asked.length, layer, cell, protocol, folder, tell)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    console = Console()
    try:
        if words and words[0] in COMMANDS:
            other(words[0], words[1:], console)
        else:
            bench(words, console)
    except (RefusedError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what was measured in full is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
