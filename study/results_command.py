"""The store from the command line.

    python -m study.results verify                  every run whose files are damaged, lost or contradict one another
    python -m study.results prune --checkpoints     leftovers, set-aside attempts, finished runs' checkpoints
    python -m study.results export ablate_M a.csv   one line per run and metric
    python -m study.results export ablate_M a.csv --wide
    python -m study.results migrate train.new=0 'train.old->train.other'

`verify` ends with 1 if it finds a fault.
`migrate` carries finished runs over a change of keys that did not change what they mean: new keys get the
value that was in effect before there was a choice. Each run moves to its new id and notes the old one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from study.command_line import add_json, add_results, command_parser, finish


def arguments() -> argparse.ArgumentParser:
    parser = command_parser("results", __doc__)
    add_results(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="VERB")
    add_json(commands.add_parser("verify", help="check every run"))
    prune = commands.add_parser("prune", help="remove what nothing needs")
    prune.add_argument("--checkpoints", action="store_true", help="also those of finished runs")
    export = commands.add_parser("export", help="write a CSV file")
    export.add_argument("sweep", help="a sweep, or . for the whole store")
    export.add_argument("file", type=Path)
    export.add_argument("--wide", action="store_true", help="one line per run, one column per metric")
    migrate = commands.add_parser("migrate", help="carry runs over a change of keys")
    migrate.add_argument("changes", nargs="*", metavar="KEY=VALUE|OLD->NEW")
    for verb in commands.choices.values():
        add_results(verb, default=argparse.SUPPRESS)
    return parser


def main(given: Sequence[str]) -> int:
    options = arguments().parse_args(given)
    return finish(lambda: _COMMANDS[options.command](options))


def _verify(options: argparse.Namespace) -> int:
    from study.upkeep import verify

    faults = verify(options.results)
    if options.json:
        print(json.dumps([{"run": fault.run, "fault": fault.what} for fault in faults], indent=2))
        return 1 if faults else 0
    for fault in faults:
        print(fault)
    print(f"{options.results}: {len(faults)} faults" if faults else f"{options.results}: every run is whole")
    return 1 if faults else 0


def _prune(options: argparse.Namespace) -> int:
    from study.upkeep import prune

    removed = prune(options.results, options.checkpoints)
    for path in removed:
        print(f"removed {path}")
    if not removed:
        print(f"{options.results}: nothing to remove")
    return 0


def _export(options: argparse.Namespace) -> int:
    from study.store import load, wide

    frame = load(options.results / options.sweep)
    (wide(frame) if options.wide else frame).to_csv(options.file, index=False)
    print(options.file)
    return 0


def _migrate(options: argparse.Namespace) -> int:
    from study.upkeep import changes, migrate

    for old, new in migrate(options.results, *changes(options.changes)):
        print(f"{old} -> {new}")
    return 0


_COMMANDS = {"verify": _verify, "prune": _prune, "export": _export, "migrate": _migrate}
