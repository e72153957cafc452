"""What commands that need torch take, apart from them: neither --help nor completion waits for torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from study.command_line import WORDS, add_json, add_results, command_parser

PARSERS = {
    "sweep": "study.sweep:arguments",
    "status": "study.status:arguments",
    "logs": "study.logs:arguments",
    "cancel": "study.cancel:arguments",
    "answer": "study.options:answer_parser",
    "report": "study.report:arguments",
    "run": "study.options:run_parser",
    "score": "study.options:score_parser",
    "cost": "study.options:cost_parser",
    "bench": "study.bench.__main__:parser",
    "data": "study.options:data_parser",
    "interchange": "study.interchange.command:parser",
    "results": "study.results_command:arguments",
    "completion": "study.completion:arguments",
}


def parser_of(command: str) -> argparse.ArgumentParser:
    module, _, function = PARSERS[command].partition(":")
    make: Callable[[], argparse.ArgumentParser] = getattr(import_module(module), function)
    return make()


RUN = """\
One run, start to finish: train, validate, sample, and leave rows; continue where it stopped when called again.

    python -m study.run backbone=diffussm-tiny data=digits8 train=quick backbone.M=2 seed=0

Every word is an override in hydra's grammar: a preset (`train=quick`) or a value (`train.lr=1e-3`).
Without any: dit-tiny on digits8, about a minute. A run that is done is not done again: its rows are shown, with
those of `score=...` added if they are new. `results=DIR` is where everything goes (results/).
With several processes, one per GPU: `torchrun --nproc-per-node 8 -m study.run ...`; the same run, with the same id.
Of a run that failed, state.json says why; of bad input nothing is left behind.
"""


def run_parser() -> argparse.ArgumentParser:
    parser = command_parser("run", RUN)
    parser.add_argument("words", nargs="*", metavar=WORDS, help="presets and values")
    return parser


ANSWER = """\
What a sweep found: its table, what is noise and what is not, and its plots.

    python -m study.answer ablate_M
    python -m study.answer results/ablate_M --json

The table and the plots are also written beside the sweep's plan.
"""


def answer_parser() -> argparse.ArgumentParser:
    parser = command_parser("answer", ANSWER)
    parser.add_argument("sweep", help="its name, or its folder")
    add_results(parser)
    add_json(parser)
    return parser


SCORE = """\
Score samples against a reference.

    python -m study.score SAMPLES REFERENCE [--metrics fd kd agreement ...]
    python -m study.score digits8/heldout digits8 --n 200

SAMPLES and REFERENCE are each an npz file (ours or ADM's), a folder of PNGs, a run id, or an embedded data
set such as `glyphs16` or `glyphs16/heldout`. A run id needs no REFERENCE: its own data's is taken.
A metric that could not be computed says why in the table, and makes the exit code 1.
"""


def score_parser() -> argparse.ArgumentParser:
    parser = command_parser("score", SCORE)
    add = parser.add_argument
    add("samples", metavar="SAMPLES")
    add("reference", metavar="REFERENCE", nargs="?")
    add(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="fid sfid is kid precision recall density coverage, swd swd_inf, or in "
        "another feature space fd fd_inf kd precision_SPACE ... and agreement",
    )
    add("--n", type=int, help="samples per draw (default: all)")
    add("--draws", type=int, default=1, help="disjoint draws of n samples, for the spread over sampling seeds")
    add("--seed", type=int, default=0, help="of projections and splits")
    add("--device", default="cpu")
    add_results(parser)
    add("--inception-weights", metavar="FILE", help="default: torch's hub cache")
    add("--inception-sha256", metavar="HEX", help="of another network's weights, if wanted")
    add("--no-cache", action="store_true", help="compute the reference's features again")
    add("--out", type=Path, metavar="FILE", help="write the scores, protocols included, as JSON")
    add_json(parser)
    return parser


COST = """\
Parameters, MACs and memory on paper: of named backbones, or of a sweep's.

    python -m study.cost dit-xl/2 diffussm-xl --size 256 512
    python -m study.cost sweeps/ablate_M.yaml --json
    python -m study.cost diffussm-xl --match like=dit-xl/2
"""


def cost_parser() -> argparse.ArgumentParser:
    parser = command_parser("cost", COST)
    add = parser.add_argument
    add("what", nargs="*", help="backbone names such as dit-xl/2, or sweep files")
    add("--size", nargs="+", type=int, metavar="PX", help="image sides in pixels")
    add("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="replace config fields, as M=4")
    add("--steps", type=int, default=250, help="denoiser steps per generated image (250)")
    add("--guided", action="store_true", help="guidance: two denoiser calls per step")
    add("--images", type=float, metavar="N", help="images of a training run, for its totals")
    add("--batch", type=int, metavar="B", help="predict training memory at this batch")
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    add("--exact", action="store_true", help="count the backward pass by tracing it")
    units = "gmacs=118.6, like=dit-xl/2, params=6e8, train_pflops=50, latency_ms=20"
    add("--match", metavar="UNIT=VALUE", help=units)
    add("--rows", metavar="FILE", help="for latency_ms: benchmark rows of one backbone on this machine")
    add("--free", nargs="+", metavar="FIELD", help="what --match may vary (depth and width)")
    add("--tolerance", default="1%", help="of --match (1%%)")
    add("--prefer", choices=("cost", "shape"), default="cost", help="among sizes within tolerance")
    add("--audit", action="store_true", help="print the papers' totals, recomputed")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--by-module", action="store_true", help="print trees of modules")
    for form in ("json", "csv", "latex"):
        shape.add_argument(f"--{form}", action="store_true", help=f"print the rows as {form}")
    return parser


DATA = """\
Look at the data sets, embedded or on disk.

    python -m study.data list
    python -m study.data show glyphtex32 --out sheet.png
    python -m study.data check /data/imagenet        what lies there, and every image that cannot be used
    python -m study.data encode ...                  latents of a set on disk: --help says how

`check` ends with 1 if an image cannot be used.
"""


def data_parser() -> argparse.ArgumentParser:
    parser = command_parser("data", DATA)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("list", help="the sets, their shapes and counts")
    sheet = verbs.add_parser("show", help="write a contact sheet, one row per class")
    sheet.add_argument("name")
    sheet.add_argument("--out", type=Path, required=True, metavar="FILE", help="the PNG to write")
    sheet.add_argument("--split", default="train", help="train, heldout or reference")
    sheet.add_argument("--seed", type=int, default=0)
    sheet.add_argument("--texture", type=float, help="contrast of the stripes, 0 to 1 (glyphtex)")
    sheet.add_argument("--stripe-period", type=float, help="shortest period in pixels (glyphtex)")
    sheet.add_argument("--path", help="where a set on disk lies")
    sheet.add_argument("--size", type=int, help="pixels along a side (sets on disk)")
    look = verbs.add_parser("check", help="say what lies at a path, and name every image that cannot be used")
    look.add_argument("path", type=Path)
    look.add_argument("--as", dest="name", metavar="SET", help="a set of the list, if the path does not tell which")
    look.add_argument("--size", type=int, help="pixels along a side that images must give, by default the set's own")
    verbs.add_parser("encode", help="write latents of a set on disk", add_help=False)
    return parser
