"""The log of one run: `python -m study.logs 3f2a [--results results] [--follow]`, by the beginning of its id."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

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


def main(given: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m study.logs", description=__doc__)
    parser.add_argument("run", help="the run's id, or the beginning of it")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--follow", action="store_true", help="go on as long as the run does")
    options = parser.parse_args(given)
    try:
        run = find_run(options.results, options.run)
        log = RunDirectory(options.results, run).log
        if not log.exists():
            raise ConfigError(f"run {run} has no log: it has not begun")
        with suppress(KeyboardInterrupt):
            if options.follow:
                follow(log, options.results, run)
            else:
                sys.stdout.write(log.read_text(encoding="utf-8", errors="replace"))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
