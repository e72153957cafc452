"""The page of one measured machine: its tables and figures, from its rows.

    python -m analysis.machine_page results/bench/MACHINE

It writes README.md, networks.png, lengths.png and resolution.png into the folder. Nothing is measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis import render
from analysis.figures.costs import network_times, time_vs_length, time_vs_resolution
from analysis.style import encode
from analysis.time_tables import measured_lengths, measured_networks, measured_ratios, measured_sides, provenance
from analysis.times import load_cells, load_lengths, load_times
from study.atomic import write_file, write_text


def write_page(folder: Path) -> list[Path]:
    """The files written."""
    if not (folder / "machine.json").exists():
        raise ValueError(f"{folder} is not valid: must be a folder that python -m study.bench wrote")
    cells, lengths, sides = load_cells(folder), load_lengths(folder), load_times(folder)
    drawn = figures(cells, lengths, sides)
    for name, figure in drawn.items():
        write_file(folder / f"{name}.png", partial(_write, encode(figure)))
    write_text(folder / "README.md", "\n".join(page(folder.name, cells, lengths, sides)))
    return [folder / "README.md", *(folder / f"{name}.png" for name in drawn)]


def _write(picture: bytes, path: Path) -> None:
    path.write_bytes(picture)


def figures(cells: pd.DataFrame, lengths: pd.DataFrame, sides: pd.DataFrame) -> dict[str, Figure]:
    drawn = {"networks": network_times(cells)}
    drawn |= {"lengths": time_vs_length(lengths)} if len(lengths) else {}
    return drawn | ({"resolution": time_vs_resolution(sides)} if len(sides) else {})


def page(name: str, cells: pd.DataFrame, lengths: pd.DataFrame, sides: pd.DataFrame) -> Iterator[str]:
    yield f"# {name}\n"
    yield f"{provenance(cells)}.\n"
    yield (
        "Made by `python -m analysis.machine_page` from the rows beside it; docs/measuring.md says how they were "
        "measured. Every sample is in `samples.parquet`.\n"
    )
    below = {
        "networks": [measured_networks(cells)],
        "lengths": [measured_lengths(lengths), measured_ratios(cells)],
        "resolution": [measured_sides(sides)],
    }
    for picture in figures(cells, lengths, sides):
        yield f"![{picture}]({picture}.png)\n"
        yield from (render.markdown(table) for table in below[picture] if len(table))


def main(given: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.machine_page", description="The page of a machine.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="results/bench/MACHINE")
    options = parser.parse_args(given)
    try:
        for folder in options.folders:
            print("\n".join(map(str, write_page(folder))))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
