"""A task done by several processes at once: what `perform` is to one."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from study.distributed import current
from study.launch.work import Outcome, Task, Work, do_leased, perform
from study.lease import take
from study.run_directory import Failure, State, Status, load_config
from study.strict import ConfigError


def perform_together(task: Task, work: Work) -> Outcome:
    """One try at a task by every rank that joined; all learn how it ended. Alone, it is `perform`.

    Rank 0 takes the lease and owns the files. Whatever did not end well leaves the ranks out of step with
    each other: then they should leave, and join again for another try.
    """
    ranks = current()
    if ranks.world_size == 1:
        return perform(task, work)
    with ExitStack() as held:
        if not ranks.first_alone(lambda: _taken(task, held)):
            return Outcome(task, None)
        return Outcome(task, do_leased(task.directory, work) if ranks.is_first else _follow(task, work))


def _taken(task: Task, held: ExitStack) -> bool:
    lease = take(task.directory.path)
    if lease is not None:
        held.enter_context(lease)
    return lease is not None


def _follow(task: Task, work: Work) -> State:
    """The same as rank 0 does, without writing down how it ended."""
    directory = task.directory
    try:
        return work(replace(load_config(directory.config), results=str(directory.path.parent.parent)))
    except Exception as error:
        failure = Failure.BAD_CONFIG if isinstance(error, ConfigError) else Failure.BUG
        return State(status=Status.FAILED, failure=failure, message=str(error))
