"""From one YAML file to a finished study; called again, it does only what is missing.

    python -m study.sweep sweeps/ablate_M.yaml
    python -m study.sweep sweeps/ablate_M.yaml --plan
    python -m study.sweep sweeps/ablate_M.yaml train.images=50_000 'axes.seed=[0,1,2,3]' launcher.workers=2

Words after the file override it, in hydra's grammar; docs/sweeps.md has every key. `results=DIR` is where
everything goes (results/). Bad input is said before anything is launched.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from study.command_line import STOPPED, WORDS, add_json, command_parser, finish
from study.strict import ConfigError, nearest

if TYPE_CHECKING:  # --help must not wait for torch
    from study.execute import Wishes
    from study.launch.config import SlurmConfig
    from study.launch.work import Work
    from study.plan import Plan, Point
    from study.run_directory import Failure, State
    from study.sweep_file import Sweep


def arguments() -> argparse.ArgumentParser:
    parser = command_parser("sweep", __doc__)
    parser.add_argument("file", type=Path, help="the sweep file")
    parser.add_argument("words", nargs="*", metavar=WORDS, help="overrides")
    parser.add_argument("--plan", action="store_true", help="print what would be done, and stop")
    add_json(parser)
    parser.add_argument("--retry", default="", metavar="CLASS", help="also redo failed runs: failed, oom, timeout, ...")
    parser.add_argument("--force", action="store_true", help="redo every run; what there is stays in its old-<n>/")
    parser.add_argument("--fail-fast", action="store_true", help="stop at the first failed run")
    parser.add_argument("--max-failures", type=int, default=0, metavar="N", help="stop at the Nth failed run")
    parser.add_argument("--wait", action="store_true", help="on a cluster: follow the jobs to their end")
    parser.add_argument("--resubmit", action="store_true", help="on a cluster that does not answer: count jobs as gone")
    return parser


def main(given: Sequence[str], work: Work | None = None) -> int:
    """`work` replaces what is done with each run."""
    options = arguments().parse_intermixed_args(given)
    return finish(lambda: _sweep(options, work))


def _sweep(options: argparse.Namespace, work: Work | None) -> int:
    from study.launch.config import LocalConfig
    from study.launch.server import warm_up
    from study.sweep_file import read_sweep

    sweep = read_sweep(options.file, options.words)
    if options.json and (not options.plan or sweep.bench or sweep.search):
        raise ConfigError("--json prints the plan of a grid: it goes with --plan, and with neither bench nor search")
    if sweep.bench:
        return _timed(sweep, options)
    if isinstance(sweep.launcher, LocalConfig) and not options.plan:
        warm_up(sweep.launcher.threads)
    from study.plan import make_plan
    from study.plan_table import plan_tree, print_plan
    from study.run import run, talk_to_console

    sweep = _following(sweep, options)
    wishes = _wishes(options, sweep.launcher.tries)
    if sweep.search:
        from study.search.command import search_sweep

        return search_sweep(sweep, wishes, work or run, options.plan, options.resubmit)
    plan = make_plan(sweep)
    if options.json:
        print(json.dumps(plan_tree(plan), indent=2))
        return 0
    print_plan(plan, memory=options.plan)
    if options.plan:
        return 0
    console = talk_to_console(terminal=sys.stderr.isatty())
    try:
        return _carry_out(plan, wishes, work or run, options.resubmit)
    finally:
        logging.getLogger("study").removeHandler(console)


def _timed(sweep: Sweep, options: argparse.Namespace) -> int:
    """Measuring knows of runs neither failures nor jobs."""
    from study.bench.command import bench_sweep

    for name in ("retry", "fail_fast", "max_failures", "wait", "resubmit"):
        if getattr(options, name):
            raise ConfigError(f"--{name.replace('_', '-')} does not go with bench: the same command measures the rest")
    return bench_sweep(sweep, options.force, options.plan)


def _wishes(options: argparse.Namespace, tries: int) -> Wishes:
    from study.execute import RETRIES, Wishes

    names = [name for name in options.retry.split(",") if name]
    for name in names:
        if name not in RETRIES:
            raise ConfigError(f"--retry {name} is not a class of failures{nearest(name, list(RETRIES))}")
    if options.max_failures < 0:
        raise ConfigError(f"--max-failures {options.max_failures} is not valid: must be 0 (never stop) or more")
    return Wishes(
        retry=tuple(failure for name in names for failure in RETRIES[name]),
        force=options.force,
        max_failures=1 if options.fail_fast else options.max_failures,
        tries=tries,
    )


def _following(sweep: Sweep, options: argparse.Namespace) -> Sweep:
    """The sweep with `--wait` applied; words about runs as they end need somebody who follows them."""
    from study.launch.config import SlurmConfig

    launcher = sweep.launcher
    if not isinstance(launcher, SlurmConfig):
        return sweep
    launcher = replace(launcher, wait=launcher.wait or options.wait)
    if not launcher.wait and (options.fail_fast or options.max_failures):
        raise ConfigError("--fail-fast and --max-failures need --wait with launcher=slurm: nobody follows the runs")
    return replace(sweep, launcher=launcher)


def _carry_out(plan: Plan, wishes: Wishes, work: Work, resubmit: bool) -> int:
    from study.data import check_has_path
    from study.execute import Execution, wanted
    from study.launch.config import InlineConfig, SlurmConfig
    from study.launch.launcher import make_launcher
    from study.watch import watching

    points = wanted(plan, wishes)
    for data in dict.fromkeys(point.config.data for point in points):
        check_has_path(data)
    config = plan.sweep.launcher
    if isinstance(config, SlurmConfig):
        if points:
            return _on_cluster(plan, wishes, config, points, resubmit)
        config = InlineConfig()
    launcher = make_launcher(config, work)
    with watching(plan, launcher, len(points)) as listener:
        execution = Execution(plan, launcher, wishes, listener)
        execution.run(points)
    return _conclude(plan, execution.ends)


def _on_cluster(plan: Plan, wishes: Wishes, config: SlurmConfig, points: list[Point], resubmit: bool) -> int:
    """Jobs do what is left; they are followed if asked for."""
    from study.execute import Execution
    from study.launch.slurm import Slurm
    from study.watch import watching

    launcher = Slurm(config, plan.folder, resubmit)
    with watching(plan, launcher, len(points) if config.wait else 0) as listener:
        execution = Execution(plan, launcher, wishes, listener, launcher.awaited())
        execution.run(points)
    if config.wait:
        return _conclude(plan, execution.ends)
    print("\n".join(launcher.report()))
    return 0


def _conclude(plan: Plan, ends: Mapping[str, State]) -> int:
    """Say what came out, and what did not; `ends` knows of what could not even be written down."""
    from study.answer import answer
    from study.plan import Standing, standing
    from study.run_directory import Status

    stands = [(point, *standing(point)) for point in plan.points]
    undone = [(point, state) for point, stand, state in stands if stand is not Standing.DONE]
    failures = [state.failure for _, stand, state in stands if stand is Standing.FAILED]
    if len(undone) < len(plan.points):
        print(answer(plan.folder, plan.as_tree()))
    for point, state in undone:
        end = state if state.failure else ends.get(point.run, state)
        reason = f"{end.failure}: {end.message}" if end.failure else "not done"
        reason = "done, but not by every metric asked for" if state.status is Status.DONE else reason
        print(f"{plan.label(point)}  {point.run}  {reason}", file=sys.stderr)
    if not undone:
        return 0
    print("\n".join(_left(len(plan.points), len(undone), failures)), file=sys.stderr)
    failed = {point.run for point, stand, _ in stands if stand is Standing.FAILED}
    failed |= {point.run for point, _ in undone if point.run in ends and ends[point.run].status is Status.FAILED}
    return 1 if failed else STOPPED


def _left(total: int, undone: int, failures: Sequence[Failure | None]) -> Iterator[str]:
    """The last lines: what the same command does of what is not done, and what it leaves until it is asked."""
    from study.execute import retry_words

    if undone > len(failures):
        yield f"{undone - len(failures)} of {total} runs are not done; the same command continues"
    if failures:
        again = f"--retry {retry_words(failures)}"
        yield f"{len(failures)} of {total} runs failed; the same command with {again} redoes them"


def leave(status: int) -> NoReturn:
    """End this process, in which nothing is left to do, without Python's tidying up: a second Ctrl-C is not to wait.

    With PyTorch loaded that alone takes most of a second, and ten on a busy machine.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
