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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from study import unscored
from study.command_line import add_json, add_results, command_parser, finish
from study.launch.slurm_cluster import Job
from study.launch.slurm_end import end_of
from study.launch.slurm_record import Place, all_open_records, look, places, slurm_folder
from study.lease import Claim, newest
from study.plan_file import read_runs
from study.run_directory import RESUMED, Failure, RunDirectory, State, Status
from study.strict import ConfigError, nearest
from study.trials_file import read_trials

TAIL = 8192  # bytes of a log that are looked at
LAST_LINES = 4  # of a failed run's log
PROGRESS = re.compile(r"step \d+/\d+ .*")
WATCH = 2.0  # seconds
SKEW = 2.0  # seconds that clocks may differ by without a word
ASK = 15.0  # seconds between questions to a cluster


@dataclass(frozen=True)
class RunView:
    """One run at this moment."""

    directory: RunDirectory
    label: str
    state: State
    claim: Claim | None
    place: Place | None = None  # in a cluster's queue
    damage: str = ""  # why its state cannot be read

    @property
    def job(self) -> Job | None:
        return self.place.job if self.place else None

    @property
    def standing(self) -> str:
        """One or two words."""
        if self.damage:
            return "damaged"
        if self.state.status is Status.DONE:
            return "done"
        if self.is_held:
            return "running"
        if self.state.status is Status.FAILED:
            return "failed"
        if self.job is not None and self.job.is_open:
            return "queued" if self.job.waits else "starting"
        if self.state.status is Status.RUNNING and self.job is None:
            return "heartbeat gone"
        if self.place is not None and self.job is None:
            return "submitted"
        return "to continue" if self.state.attempts else "not begun"

    @property
    def is_held(self) -> bool:
        """Whether a process is at it; one that SLURM has given up does not count, even while its lease lasts."""
        if self.claim is None or not self.claim.held:
            return False
        number, _, restart = self.claim.holder.job.partition(".")
        job = self.job
        if job is None or job.number != number or job.state == "COMPLETING":
            return True
        return job.restarts <= int(restart)

    @property
    def detail(self) -> str:
        """What there is to add, in one line."""
        if self.damage:
            return self.damage
        told = [self._progress() if self.standing == "running" else "", self._queue(), self._end()]
        return "; ".join(line for line in told if line)

    def _progress(self) -> str:
        holder = self.claim.holder if self.claim else None
        where = f"  {holder.host}:{holder.pid}" if holder else ""
        return (progress(self.directory) or "starting") + where

    def _queue(self) -> str:
        """Where its job is and what for."""
        if self.place is None or self.state.status in (Status.DONE, Status.FAILED):
            return ""
        number = f"job {self.place.submission.job}_{self.place.index}"
        if self.job is None:
            return number
        again = f", restarted {self.job.restarts} times" if self.job.restarts else ""
        if self.job.waits:
            return f"{number} waits: {self.job.reason}{again}"
        return f"{number} {self.job.state.lower()} on {self.job.nodes}{again}"

    def _end(self) -> str:
        """How its last attempt ended, by its own word or by SLURM's."""
        attempt = f"  (attempt {self.state.attempts})"
        if self.standing in ("running", "done"):
            return ""
        if self.state.failure is not None:
            goes_on = "; the sweep continues it" if self.state.failure in RESUMED else ""
            return f"{self.state.failure}: {self.state.message}{attempt}{goes_on}"
        if self.state.status is Status.RUNNING and self.place is not None and self.job is not None:
            if self.job.is_open:
                return f"{Failure.NODE_LOST}: it fell silent on {self.state.host}{attempt}"
            failure, message = end_of(self.place)
            return f"{failure}: {message}{attempt}; the sweep continues it"
        if self.state.status is Status.RUNNING:
            return f"{self.state.host}:{self.state.pid} last wrote {self._silence()}; the sweep continues it"
        if self.job is not None and not self.job.is_open and self.place is not None:
            failure, message = end_of(self.place)
            return f"{failure}: {message}"
        return ""

    def _silence(self) -> str:
        silent = time.time() - self.state.heartbeat
        if silent < -SKEW:
            return f"{-silent:.0f} s from now: its clock or this one is wrong"
        return f"{max(silent, 0):.0f} s ago"


@dataclass(frozen=True)
class Queue:
    """What a store has in a cluster's queue."""

    runs: Mapping[str, Place] = field(default_factory=dict)  # by run id
    workers: Sequence[Place] = ()  # jobs that take their runs from a search


Ask = Callable[[Path], Queue]
"""Of a store."""


def queue_of(results: Path) -> Queue:
    """The cluster is asked once, and only if something was submitted."""
    records = all_open_records(results)
    jobs = look(records) if records else None
    return Queue(places(records, jobs), [place for r in records if r.search for place in r.places(jobs)])


class Glimpses:
    """`queue_of` for who looks often: SLURM hears of it now and then only."""

    def __init__(self) -> None:
        self._known = Queue()
        self._asked = -ASK

    def __call__(self, results: Path) -> Queue:
        if time.monotonic() - self._asked >= ASK:
            self._known, self._asked = queue_of(results), time.monotonic()
        return self._known


def view(results: Path, run: str, label: str = "", waiting: Queue | None = None) -> RunView:
    directory = RunDirectory(results, run)
    place = waiting.runs.get(run) if waiting else None
    return RunView(directory, label, directory.read_state(), newest(directory.path), place)


def sweep_views(folder: Path, waiting: Queue) -> list[RunView]:
    """Every run of a sweep, in its order; one that is damaged hides no other."""
    return [_view_or_damage(folder.parent, run, label, waiting) for run, label in read_runs(folder).items()]


def _view_or_damage(results: Path, run: str, label: str, waiting: Queue) -> RunView:
    try:
        return view(results, run, label, waiting)
    except ConfigError as error:
        return RunView(RunDirectory(results, run), label, State(), None, damage=" ".join(str(error).split()))


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


def describe_sweep(folder: Path, ask: Ask = queue_of) -> list[str]:
    waiting = ask(folder.parent)
    views = sweep_views(folder, waiting)
    counts = Counter(view.standing for view in views)
    lines = [f"{folder}: {_told(counts, len(views))}", *search_lines(folder, waiting)]
    width = max((len(view.label) for view in views), default=0)
    for each in views:
        lines.append(f"  {each.directory.identity}  {each.label:{width}}  {each.standing:14}  {each.detail}".rstrip())
        if each.standing == "failed":
            lines += [f"      {line}" for line in tail(each.directory.log)[-LAST_LINES:]]
    empty = unscored.lines_of_many(unscored.read_unscored(each.directory.unscored) for each in views)
    return lines + [f"  {line}" for line in empty]


def search_lines(folder: Path, waiting: Queue) -> list[str]:
    """How far a search is, and where its workers are; nothing of a sweep whose points were listed."""
    workers = [place for place in waiting.workers if place.submission.folder == str(slurm_folder(folder))]
    lines = [f"  worker {place.submission.job}_{place.index}  {_of_worker(place)}" for place in workers]
    try:
        trials = read_trials(folder)
    except ConfigError:  # no search, or one that writes its file anew as it goes on
        return lines
    words = Counter(trial["failure"] or trial["state"] for trial in trials)
    return [f"  {len(trials)} trials: {', '.join(f'{n} {word}' for word, n in words.most_common())}", *lines]


def _of_worker(place: Place) -> str:
    """What SLURM makes of a job at a search."""
    job = place.job
    if job is None:
        return "submitted"
    again = f", restarted {job.restarts} times" if job.restarts else ""
    if job.is_open:
        return f"waits: {job.reason}{again}" if job.waits else f"{job.state.lower()} on {job.nodes}{again}"
    if job.state == "COMPLETED":
        return "found nothing left to do"
    failure, message = end_of(place)
    return f"{failure}: {message}{again}"


def describe_run(results: Path, run: str, ask: Ask = queue_of) -> list[str]:
    each = view(results, run, "", ask(results))
    lines = [f"{each.directory.path}: {each.standing}  {each.detail}".rstrip()]
    lines += [f"    {line}" for line in unscored.lines(unscored.read_unscored(each.directory.unscored))]
    return lines + [f"    {line}" for line in tail(each.directory.log)[-LAST_LINES:]]


def describe_store(results: Path, ask: Ask = queue_of) -> list[str]:
    folders = sorted(plan.parent for plan in results.glob("*/plan.json"))
    lines, waiting = [], ask(results)
    for folder in folders:
        try:
            views = sweep_views(folder, waiting)
        except ConfigError as error:  # the others are to be seen all the same
            lines.append(f"{folder}: {error}")
            continue
        lines.append(f"{folder}: {_told(Counter(view.standing for view in views), len(views))}")
    return lines or [f"{results}: no sweep yet"]


def _told(counts: Counter[str], total: int) -> str:
    return f"{total} runs: {', '.join(f'{n} {standing}' for standing, n in counts.most_common())}".removesuffix(": ")


def describe(results: Path, name: str | None, ask: Ask = queue_of) -> list[str]:
    """A store, a sweep of it by name or path, or a run by the beginning of its id."""
    if name is None:
        return describe_store(results, ask)
    folder = sweep_folder(results, name)
    return describe_sweep(folder, ask) if folder else describe_run(results, find_run(results, name), ask)


def sweep_folder(results: Path, name: str) -> Path | None:
    """Of a sweep by name or path."""
    return next((folder for folder in (Path(name), results / name) if (folder / "plan.json").exists()), None)


def find_sweep(results: Path, name: str) -> Path:
    folder = sweep_folder(results, name)
    if folder is None:
        sweeps = [plan.parent.name for plan in results.glob("*/plan.json")]
        raise ConfigError(f"{name} is no sweep in {results}{nearest(name, sweeps) if sweeps else ''}")
    return folder


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


def as_tree(results: Path, name: str | None, ask: Ask = queue_of) -> dict[str, Any]:
    """The same as `describe`, for machines: {"sweeps": {folder: {"runs": [...]}}}, or {"runs": [...]} of one."""
    if name is None:
        folders = sorted(plan.parent for plan in results.glob("*/plan.json"))
        waiting = ask(results)
        return {"sweeps": {str(folder): _tree_or_error(folder, waiting) for folder in folders}}
    folder = sweep_folder(results, name)
    if folder is None:
        return _tree_of([view(results, find_run(results, name), "", ask(results))])
    return {"sweep": str(folder), **_tree_of(sweep_views(folder, ask(folder.parent)))}


def _tree_or_error(folder: Path, waiting: Queue) -> dict[str, Any]:
    try:
        return _tree_of(sweep_views(folder, waiting))
    except ConfigError as error:
        return {"error": str(error)}


def _tree_of(views: Sequence[RunView]) -> dict[str, Any]:
    runs = [
        {
            "run": each.directory.identity,
            "label": each.label,
            "standing": each.standing,
            "detail": each.detail,
            **asdict(each.state),
            "unscored": unscored.read_unscored(each.directory.unscored),
        }
        for each in views
    ]
    return {"standings": dict(Counter(each.standing for each in views)), "runs": runs}


def _frames(options: argparse.Namespace) -> Iterator[str]:
    """What to print, again and again if asked; JSON then takes one line each time."""
    ask = Glimpses()
    while True:
        if options.json:
            yield json.dumps(as_tree(options.results, options.name, ask), indent=None if options.watch else 2)
        else:
            yield "\n".join(describe(options.results, options.name, ask))
        if not options.watch:
            return
        time.sleep(WATCH)


def arguments() -> argparse.ArgumentParser:
    parser = command_parser("status", __doc__)
    parser.add_argument("name", nargs="?", help="a sweep or a run")
    add_results(parser)
    parser.add_argument("--watch", action="store_true", help="again and again, until Ctrl-C")
    add_json(parser)
    return parser


def main(given: Sequence[str]) -> int:
    options = arguments().parse_args(given)
    return finish(lambda: _status(options))


def _status(options: argparse.Namespace) -> int:
    clear = "\x1b[2J\x1b[H" if options.watch and not options.json and sys.stdout.isatty() else ""
    for text in _frames(options):
        print(clear + text, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
