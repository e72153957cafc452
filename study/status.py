"""What is going on, from the files alone: works from any shell, on any machine that sees the results.

python -m study.status                    every sweep of the store
python -m study.status ablate_M --watch   every run of one sweep
python -m study.status 3f2a               one run, by the beginning of its id
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from study.lease import Claim, newest
from study.run_directory import RunDirectory, State, Status
from study.strict import ConfigError, nearest

TAIL = 8192  # bytes of a log that are looked at
LAST_LINES = 4  # of a failed run's log
PROGRESS = re.compile(r"step \d+/\d+ .*")
WATCH = 2.0  # seconds


@dataclass(frozen=True)
class RunView:
    """One run at this moment."""

    directory: RunDirectory
    label: str
    state: State
    claim: Claim | None

    @property
    def standing(self) -> str:
        """One or two words."""
        if self.state.status is Status.DONE:
            return "done"
        if self.claim is not None and self.claim.held:
            return "running"
        if self.state.status is Status.RUNNING:
            return "heartbeat gone"
        if self.state.status is Status.FAILED:
            return "failed"
        return "to continue" if self.state.attempts else "not begun"

    @property
    def detail(self) -> str:
        """What there is to add, in one line."""
        if self.standing == "running":
            holder = self.claim.holder if self.claim else None
            where = f"  {holder.host}:{holder.pid}" if holder else ""
            return (progress(self.directory) or "starting") + where
        if self.standing == "heartbeat gone":
            silent = time.time() - self.state.heartbeat
            return f"{self.state.host}:{self.state.pid} last wrote {silent:.0f} s ago; the sweep continues it"
        if self.state.failure is not None:
            return f"{self.state.failure}: {self.state.message}  (attempt {self.state.attempts})"
        return ""


def view(results: Path, run: str, label: str = "") -> RunView:
    directory = RunDirectory(results, run)
    return RunView(directory, label, directory.read_state(), newest(directory.path))


def sweep_views(folder: Path) -> list[RunView]:
    """Every run of a sweep, in its order."""
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    return [view(folder.parent, point["run"], point["label"]) for point in plan["points"]]


def progress(directory: RunDirectory) -> str:
    """The newest line in which a run says how far it is."""
    found = [match.group() for line in tail(directory.log) if (match := PROGRESS.search(line))]
    return found[-1] if found else ""


def tail(path: Path) -> list[str]:
    """The last lines of a text file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            return file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []


def describe_sweep(folder: Path) -> list[str]:
    views = sweep_views(folder)
    counts = Counter(view.standing for view in views)
    lines = [f"{folder}: {_told(counts, len(views))}"]
    width = max(len(view.label) for view in views)
    for each in views:
        lines.append(f"  {each.directory.identity}  {each.label:{width}}  {each.standing:14}  {each.detail}".rstrip())
        if each.standing == "failed":
            lines += [f"      {line}" for line in tail(each.directory.log)[-LAST_LINES:]]
    return lines


def describe_run(results: Path, run: str) -> list[str]:
    each = view(results, run)
    lines = [f"{each.directory.path}: {each.standing}  {each.detail}".rstrip()]
    return lines + [f"    {line}" for line in tail(each.directory.log)[-LAST_LINES:]]


def describe_store(results: Path) -> list[str]:
    folders = sorted(plan.parent for plan in results.glob("*/plan.json"))
    lines = []
    for folder in folders:
        views = sweep_views(folder)
        lines.append(f"{folder}: {_told(Counter(view.standing for view in views), len(views))}")
    return lines or [f"{results}: no sweep yet"]


def _told(counts: Counter[str], total: int) -> str:
    return f"{total} runs: " + ", ".join(f"{count} {standing}" for standing, count in counts.most_common())


def describe(results: Path, name: str | None) -> list[str]:
    """A store, a sweep of it by name or path, or a run by the beginning of its id."""
    if name is None:
        return describe_store(results)
    for folder in (Path(name), results / name):
        if (folder / "plan.json").exists():
            return describe_sweep(folder)
    return describe_run(results, find_run(results, name))


def find_run(results: Path, name: str) -> str:
    """The one run whose id begins with `name`."""
    runs = [path.name for path in (results / "runs").glob("*")] if (results / "runs").is_dir() else []
    found = [run for run in runs if run.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{name} begins {len(found)} run ids: {', '.join(sorted(found)[:4])}; give more of it")
    sweeps = [plan.parent.name for plan in results.glob("*/plan.json")]
    raise ConfigError(f"{name} is no sweep and no run in {results}{nearest(name, sweeps) if sweeps else ''}")


def _frames(results: Path, name: str | None, watch: bool) -> Iterator[list[str]]:
    yield describe(results, name)
    while watch:
        time.sleep(WATCH)
        yield describe(results, name)


def main(given: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m study.status", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", help="a sweep or a run")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--watch", action="store_true", help="again and again, until Ctrl-C")
    options = parser.parse_args(given)
    clear = "\x1b[2J\x1b[H" if options.watch and sys.stdout.isatty() else ""
    try:
        with suppress(KeyboardInterrupt):
            for lines in _frames(options.results, options.name, options.watch):
                print(clear + "\n".join(lines), flush=True)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
