"""End what a sweep has queued or running; every run stays as far as it came, and the sweep continues it.

python -m study.cancel ablate_M
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from study.command_line import add_results, command_parser, finish
from study.launch import slurm_cluster
from study.launch.slurm_record import open_records
from study.lease import this_machine
from study.status import RunView, find_sweep, queue_of, sweep_views
from study.strict import ConfigError


def cancel(folder: Path) -> list[str]:
    """Of the sweep in `results/<sweep>`: its jobs on a cluster, and processes of this machine. Says what it did."""
    lines, complaints = [], []
    for record in open_records(folder):  # by name: numbers are another cluster's, come again, or are not known yet
        complaint = slurm_cluster.cancel(record.name)
        if complaint:
            complaints.append(f"scancel {record.name}: {complaint}")
        else:
            record.changed(cancelled=time.time())
            lines.append(f"scancel {record.name}")
    for view in sweep_views(folder, queue_of(folder.parent)):
        if view.claim is not None and view.claim.held and not view.claim.holder.job:
            lines.append(_interrupt(view))
    if complaints:
        raise ConfigError("; ".join([*complaints, *lines]))
    return lines or [f"{folder}: nothing is queued or running"]


def _interrupt(view: RunView) -> str:
    """Ask a local process to save its run and stop, as Ctrl-C does."""
    assert view.claim is not None
    holder = view.claim.holder
    if holder.machine != this_machine():
        return f"{view.directory.identity} is being done on {holder.host}: cancel it there"
    os.kill(holder.pid, signal.SIGINT)
    return f"{view.directory.identity}: process {holder.pid} was asked to stop"


def arguments() -> argparse.ArgumentParser:
    parser = command_parser("cancel", __doc__)
    parser.add_argument("sweep", help="its name, or its folder")
    add_results(parser)
    return parser


def main(given: Sequence[str]) -> int:
    options = arguments().parse_args(given)
    return finish(lambda: _cancel(options))


def _cancel(options: argparse.Namespace) -> int:
    print("\n".join(cancel(find_sweep(options.results, options.sweep))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
