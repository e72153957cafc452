"""A process at a search of fake runs, forked from a server that has imported everything."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from study.config import RunConfig
from study.execute import Wishes
from study.launch.inline import Inline
from study.launch.work import Task
from study.run_directory import State
from study.search.command import check, set_up
from study.search.hunt import Hunt
from study.sweep_file import read_sweep
from tests.study.fake_runs import work

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.study.search.killed_search", "study.search.command", "optuna"])


class Silent:
    def ended(self, task: Task, state: State) -> None: ...

    def note(self, line: str) -> None: ...


def brief_run(config: RunConfig) -> State:
    return work(config, pause=0.004)


def start(file: Path, results: Path) -> BaseProcess:
    process = SERVER.Process(target=hunt, args=(file, results))
    process.start()
    return process


def hunt(file: Path, results: Path) -> None:
    """All that `python -m study.sweep` does with a search, without the answer at the end."""
    sweep = read_sweep(file, [f"results={results}"])
    assert sweep.search is not None
    wishes = Wishes(tries=50)
    spaces = check(sweep, wishes)
    families = set_up(sweep, results / sweep.name, spaces, wishes)
    Hunt(sweep.search, families, Inline(brief_run), wishes, Silent()).run()


def wait_for(processes: list[BaseProcess], seconds: float) -> bool:
    """Whether all ended in time."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    return all(process.exitcode is not None for process in processes)
