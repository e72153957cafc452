"""The log of one run, by the beginning of its id.

python -m study.logs 3f2a --follow
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from study.command_line import add_results, command_parser, finish
from study.run_directory import RunDirectory
from study.status import find_run, view
from study.strict import ConfigError

POLL = 0.5  # seconds


def follow(log: Path, results: Path, run: str) -> None:
    """Print what is added, until the run is no longer running."""
    with log.open(encoding="utf-8", errors="replace") as file:
        while True:
            running = view(results, run).standing == "running"  # asked first: its last lines are still printed
            sys.stdout.write(file.read())
            sys.stdout.flush()
            if not running:
                return
            time.sleep(POLL)


def arguments() -> argparse.ArgumentParser:
    parser = command_parser("logs", __doc__)
    parser.add_argument("run", help="the run's id, or the beginning of it")
    add_results(parser)
    parser.add_argument("--follow", action="store_true", help="go on as long as the run does")
    return parser


def main(given: Sequence[str]) -> int:
    options = arguments().parse_args(given)
    return finish(lambda: _logs(options))


def _logs(options: argparse.Namespace) -> int:
    run = find_run(options.results, options.run)
    log = RunDirectory(options.results, run).log
    if not log.exists():
        raise ConfigError(f"run {run} has no log: it has not begun")
    if options.follow:
        follow(log, options.results, run)
    else:
        print(log.read_text(encoding="utf-8", errors="replace"), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
