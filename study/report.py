"""A study as one page: findings in words, tables, figures, samples, where the numbers come from.

    python -m study.report results/ablate_M [results/ablate_P ...] [--out DIR]

A sweep may be given by name where it lies in results/. Without --out the page goes to the sweep's folder, to
`report/report.html`; of several sweeps to `report/` beside them. It needs no network and no other file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from study.command_line import add_results, command_parser, finish
from study.strict import ConfigError


def arguments() -> argparse.ArgumentParser:
    parser = command_parser("report", __doc__)
    parser.add_argument("sweeps", nargs="+", type=Path, metavar="SWEEP", help="a sweep's folder or name, or a store")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the page and its files go")
    add_results(parser)
    return parser


def main(given: Sequence[str]) -> int:
    options = arguments().parse_args(given)
    return finish(lambda: _report(options))


def _report(options: argparse.Namespace) -> int:
    folders = [_folder(options.results, sweep) for sweep in options.sweeps]
    out = options.out or (folders[0] if len(folders) == 1 else folders[0].parent) / "report"
    from analysis.report import write_report  # the one import upwards: this module is the analysis' door

    print(write_report(folders, out))
    return 0


def _folder(results: Path, sweep: Path) -> Path:
    found = next((folder for folder in (sweep, results / sweep) if folder.is_dir()), None)
    if found is None:
        known = sorted(plan.parent.name for plan in results.glob("*/plan.json"))
        there = f"; {results}/ has {', '.join(known)}" if known else ""
        raise ConfigError(f"{sweep} is no folder of results: give a sweep's folder or its name{there}")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
