"""Time backbones on this machine; the first name is the baseline.

    python -m study.bench dit-tiny diffussm-tiny --size 16 --batch 1 8 --mode forward train sample
    python -m study.bench compare OLD NEW

Others: `scaling`, `lengths`, `compare A B`, `record`; each tells its own --help. Interrupted, what was measured in
full is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from models.denoiser import require
from study.bench.block import LISTS, BenchConfig
from study.bench.change import compare_checkouts, compare_folders
from study.bench.config import DTYPES, MODES, Network, Protocol, Spin, Subject, spelled
from study.bench.process import RefusedError
from study.bench.record import PARTS, record
from study.bench.rows import lines_of
from study.bench.scaling import lengths, scaling
from study.bench.store import everything, machine_folder, save
from study.bench.suite import run_suite
from study.bench.table import print_lines, table_line
from study.command_line import STOPPED, add_json, command_parser, finish
from study.cost.summary import at_pixels

SMALL_SUITE = ["dit-tiny", "diffussm-tiny", "dis-tiny", "unet-tiny"]
BRIEF = Protocol(min_samples=40, min_seconds=1.0, repeats=5, blocks=4)
"""Of a comparison: many short processes, for the difference between processes is what makes it uncertain."""


def parser() -> argparse.ArgumentParser:
    made = command_parser("bench", __doc__)
    made.add_argument(
        "names", nargs="*", help="backbones such as dit-s/2 or diffussm-s:M=4, the first is the baseline; spin:N"
    )
    made.add_argument("--size", nargs="+", type=int, metavar="PX", help="image sides in pixels (each backbone's own)")
    made.add_argument("--batch", nargs="+", type=int, default=[1])
    made.add_argument("--mode", nargs="+", choices=MODES, default=["forward"])
    made.add_argument("--dtype", nargs="+", choices=DTYPES, default=["fp32"])
    made.add_argument("--peer", action="append", default=[], metavar="NAME=PATH:CALLABLE", help="beside the first name")
    made.add_argument("--steps", type=int, default=20, help="of an end-to-end sample, ddim (20)")
    made.add_argument("--guidance", type=float, default=1.0, help="of a sample; other than 1 doubles its calls")
    made.add_argument("--no-memory", action="store_true", help="leave out the passes for memory and energy")
    made.add_argument("--json", action="store_true", help="print everything, each sample included, as JSON")
    add_settings(made)
    return made


def add_settings(made: argparse.ArgumentParser) -> None:
    """What every command that times has."""
    add_machine(made)
    add_protocol(made, Protocol())
    made.add_argument("--out", type=Path, help="folder of results (results/bench/<this machine>)")


def add_machine(made: argparse.ArgumentParser) -> None:
    made.add_argument("--compile", action="store_true")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    made.add_argument("--threads", type=int, default=1, help="of a CPU, pinned (1)")


def add_protocol(made: argparse.ArgumentParser, usual: Protocol) -> None:
    samples, seconds = f"of a cell in all its processes ({usual.min_samples})", f"likewise ({usual.min_seconds:g})"
    made.add_argument("--min-samples", type=int, default=usual.min_samples, help=samples)
    made.add_argument("--min-seconds", type=float, default=usual.min_seconds, help=seconds)
    made.add_argument("--repeats", type=int, default=usual.repeats, help=f"processes per cell ({usual.repeats})")
    made.add_argument("--blocks", type=int, default=usual.blocks, help=f"turns per process ({usual.blocks})")
    made.add_argument("--seed", type=int, default=usual.seed, help="of the order of turns")
    made.add_argument("--noisy", type=float, default=usual.noisy, help="IQR / median that is flagged (0.1)")
    made.add_argument("--rejected", type=float, default=usual.rejected, help="and that is not reported (0.25)")


def block_of(asked: argparse.Namespace) -> BenchConfig:
    """The same as a sweep file's `bench:` block; options that a command lacks stay as they are there."""
    found = {each.name: getattr(asked, each.name, None) for each in fields(BenchConfig)}
    given = {name: value for name, value in found.items() if value is not None}
    words: dict[str, Any] = {name: value for name, value in given.items() if name not in LISTS}
    words |= {name: tuple(value) for name, value in given.items() if name in LISTS and isinstance(value, list)}
    return BenchConfig(**words, memory=not getattr(asked, "no_memory", False))


def folder_of(asked: argparse.Namespace, block: BenchConfig) -> Path:
    return asked.out or machine_folder(block.place)


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
    config = spelled(name)
    return Network(name, (config if pixels is None else at_pixels(config, pixels)).size)


def bench(argv: Sequence[str], console: Console) -> None:
    asked = parser().parse_args(argv)
    require(bool(asked.names), "names", asked.names, f"one or more backbones (or {', '.join(COMMANDS)})")
    require(len(set(asked.names)) == len(asked.names), "names", asked.names, "distinct")
    block = block_of(asked)
    cells = block.cells(lambda pixels: subjects(asked.names, asked.peer, pixels))
    protocol, folder = block.protocol, folder_of(asked, block)
    found = run_suite(cells, protocol, block.memory, tell, lambda part: save(folder, part, protocol))
    save(folder, found, protocol)  # again, now that the largest common batch is known
    if asked.json:
        print(json.dumps(everything(found, protocol)))
        return
    print_lines([table_line(line) for each in found for line in lines_of(each, protocol)], console)
    console.print(f"{protocol.name}; every sample is in {folder}", highlight=False, soft_wrap=True)


def tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def other_parser(command: str) -> argparse.ArgumentParser:
    made = command_parser(f"bench {command}", f"{COMMANDS[command]}\n\n    python -m study.bench {EXAMPLES[command]}")
    if command == "compare":
        add_compared(made)
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
    if command == "record":
        made.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="of all that is published")
    if command in ("scaling", "lengths"):
        made.add_argument("--batch", type=int, default=1)
        made.add_argument("--mode", choices=("forward", "train"), default="forward")
    add_settings(made)
    return made


def add_compared(made: argparse.ArgumentParser) -> None:
    made.add_argument("before", type=Path, metavar="A", help="a checkout of this code, or a folder of results")
    made.add_argument("after", type=Path, metavar="B", help="the changed one: another checkout, or another folder")
    made.add_argument("--names", nargs="+", default=SMALL_SUITE, help="of checkouts: what to time (tiny sizes)")
    made.add_argument("--batch", nargs="+", type=int, default=[8])
    made.add_argument("--mode", nargs="+", choices=MODES, default=["train"])
    add_json(made)
    add_machine(made)
    add_protocol(made, BRIEF)


EXAMPLES = {
    "scaling": "scaling dit-s/2 diffussm-s --side 8 16 32",
    "lengths": "lengths --length 64 256 1024 --form s4d attention",
    "compare": "compare ../before . --names dit-tiny --mode train",
    "record": "record --part layers",
}
COMMANDS = {
    "scaling": "Time against the side of the input: exponents, and where one backbone overtakes another.",
    "lengths": "The S4D layer, its textbook form and attention against sequence length.",
    "compare": "Whether a change is faster: two checkouts timed in turns, or two folders of results.",
    "record": "Everything that results/bench/ publishes of this machine.",
}


def compare(asked: argparse.Namespace, console: Console) -> None:
    """A line per cell as it ends: whoever stops waiting has what there is."""
    if (asked.before / "study").is_dir() and (asked.after / "study").is_dir():
        block = block_of(asked)
        cells = block.cells(lambda pixels: subjects(asked.names, (), pixels))
        changes = compare_checkouts(asked.before, asked.after, cells, block.protocol)
        note = "Timed in turns, so drift of the machine falls on both."
    else:
        changes = compare_folders(asked.before, asked.after)
        note = "Measured apart: intervals are widened by the change of the machine's own peak, and by nothing else."
    found = []
    for change in changes:
        found.append(change.as_tree())
        if not asked.json:
            console.print(str(change), highlight=False, soft_wrap=True, markup=False)
    if asked.json:
        print(json.dumps(found))
        return
    console.print(f"{note} All {len(found)} intervals hold together in 95 % of such reports.", soft_wrap=True)


def other(command: str, argv: Sequence[str], console: Console) -> None:
    asked = other_parser(command).parse_args(argv)
    if command == "compare":
        compare(asked, console)
        return
    block = block_of(asked)
    protocol, plain, folder = block.protocol, block.plain(), folder_of(asked, block)
    if command == "record":
        lines: Iterable[str] = record(plain, protocol, folder, tell, asked.part)
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
    return finish(lambda: _bench(words), (RefusedError,))


def _bench(words: Sequence[str]) -> int:
    console = Console()
    try:
        if words and words[0] in COMMANDS:
            other(words[0], words[1:], console)
        else:
            bench(words, console)
    except ValueError as error:
        raise RefusedError(" ".join(str(error).split())) from error
    except KeyboardInterrupt:
        print("interrupted: what was measured in full is kept", file=sys.stderr)
        return STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
