"""One run, start to finish: train, validate, sample, and leave rows; continue where it stopped when called again."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from study import unscored
from study.allocator import keep_freed_memory
from study.attempt import Attempt, Hear, quality
from study.checkpoint import CheckpointFolder
from study.command_line import STOPPED, finish
from study.compose import resolve
from study.config import RunConfig
from study.distributed import LostRankError, Ranks, current, is_lost, join
from study.interruption import PrunedError, StoppedError, StopRequest
from study.latents.decode import check_decoder
from study.lease import Holding, already_held, hold
from study.options import run_parser
from study.provenance import provenance
from study.results import read_rows
from study.run_directory import Failure, RunDirectory, State, Status
from study.strict import ConfigError
from study.trackers import check_trackers
from study.train import ALONE, DivergedError, Trainer

log = logging.getLogger("study.run")  # not __name__, which is __main__ on the command line


def run_alone(config: RunConfig, show_bar: bool = False) -> State:
    """`run`, refused while another process has this very run in hand."""
    return run(config, show_bar, hold)


def deaf(images: int, loss: float) -> bool:
    """Hears every validation, and has nothing against going on."""
    return False


def run(
    config: RunConfig,
    show_bar: bool = False,
    holding: Callable[[Path], Holding] = already_held,
    hear: Hear = deaf,
) -> State:
    """Do the run, or what is left of it. Bad input is a ConfigError before anything is written; all else a state.

    `hear` is told every validation on the way, and may end the run there: it is pruned, and can be continued.

    Every rank that joined calls this; rank 0 writes, and all return, or raise, the same.
    """
    ranks = current()
    directory = RunDirectory.of(config)
    state = ranks.first_alone(directory.read_state)
    if state.status is Status.DONE:
        if config.score.metrics:
            ranks.first_alone(lambda: _score_again(config, directory, holding))
        return state
    trainer, facts = ranks.together(lambda: prepare(config))
    with ranks.on_first(holding(directory.path)):
        state = ranks.first_alone(lambda: _begin(config, directory, trainer))
        if state.status is Status.DONE:
            return state
        return _run(config, show_bar, directory, trainer, state, facts, hear)


def _score_again(config: RunConfig, directory: RunDirectory, holding: Callable[[Path], Holding]) -> None:
    """Of a finished run, whatever scores are asked for now and were not then."""
    from study.score_again import add_scores, lacks_scores

    if lacks_scores(config, directory):
        with holding(directory.path), log_file(directory.log):
            add_scores(config, directory, lambda config: prepare(config, ALONE))


def _begin(config: RunConfig, directory: RunDirectory, trainer: Trainer) -> State:
    """Make the run's folder, or see that nothing stands against continuing in it."""
    state = directory.read_state()  # again: it may have been finished while this process got ready
    if state.status is not Status.DONE:
        check_same_data(directory, trainer)
        directory.create(config)
    return state


def check_same_data(directory: RunDirectory, trainer: Trainer) -> None:
    """Refuse to go on with other images than before: no later step would notice."""
    facts = CheckpointFolder(directory.checkpoints, directory.identity).newest_facts()
    for split, now in trainer.data_digests().items():
        then = facts["data"][split] if facts else now
        if now != then:
            raise ConfigError(
                f"the {split} images of {trainer.config.data.name} changed since {directory.path} was begun (sha256 "
                f"{now[:12]}..., then {then[:12]}...): bring the old ones back, or remove the folder to begin again"
            )


def _run(
    config: RunConfig,
    show_bar: bool,
    directory: RunDirectory,
    trainer: Trainer,
    state: State,
    facts: dict[str, str],
    hear: Hear,
) -> State:
    ranks = trainer.ranks
    with log_file(directory.log) if ranks.is_first else nullcontext(), StopRequest(ranks.largest) as stop:
        try:
            state = ranks.first_alone(lambda: _started(directory, state, facts))
            trainer.meet()
            attempt = Attempt(config, trainer, directory, state, facts, stop, hear)
            with attempt.closing:
                attempt.train(show_bar and ranks.is_first)
                attempt.finish()
            return ranks.first_alone(lambda: attempt.state)
        except BaseException as error:
            return _ended(error, directory, replace(state, images=trainer.images), ranks)


def _started(directory: RunDirectory, state: State, facts: dict[str, str]) -> State:
    attempts = state.attempts + 1
    state = directory.write_state(state, status=Status.RUNNING, attempts=attempts, failure=None, message=None)
    directory.add_provenance(attempts, facts)
    return state


def prepare(config: RunConfig, ranks: Ranks | None = None) -> tuple[Trainer, dict[str, str]]:
    """Everything that can refuse a run, done before a single file is written; and where its results come from."""
    ranks = ranks or current()
    device = pick_device(config.machine.device, ranks)
    allocator = keep_freed_memory() if config.machine.keep_freed_memory else "as the system sets it"
    if config.machine.threads:
        torch.set_num_threads(config.machine.threads)
    torch.set_float32_matmul_precision("highest")  # fp32 means fp32: no TF32
    torch.backends.cudnn.allow_tf32 = False
    check_trackers(config.log)
    check_writable(Path(config.results))
    for metric, reason in quality().unscorable(config).items() if config.score.metrics else ():
        log.warning("%s will stay empty: %s", metric, reason)
    try:
        if config.sample.count:
            check_decoder(config.data)
        trainer = Trainer(config, device, ranks)
    except (ValueError, FileNotFoundError) as error:
        raise error if isinstance(error, ConfigError) else ConfigError(str(error)) from error
    facts = provenance(
        device,
        precision=config.train.precision,
        compile=str(config.machine.compile).lower(),
        allocator=allocator,
        train_data=trainer.draws.images.sha256,
        ranks=str(ranks.world_size),
        shard=str(trainer.sharded).lower(),
    )
    return trainer, facts


def pick_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """Each of several ranks on a machine takes a GPU of its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and ranks.world_size > 1:
            if device.index is not None:
                raise RuntimeError("each of several ranks takes its own GPU")
            device = torch.device("cuda", ranks.local_rank % max(torch.cuda.device_count(), 1))
        torch.empty(1, device=device)
        if device.index is not None and device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"machine.device={name!r} is not usable here ({reason}): must be auto, cpu or cuda"
        ) from error
    return device


def check_writable(results: Path) -> None:
    """Refuse a results folder that cannot be made or written to, without making it."""
    try:
        existing = next(path for path in (results.absolute(), *results.absolute().parents) if path.exists())
        os.rmdir(tempfile.mkdtemp(dir=existing, prefix=".probe.", suffix=".tmp"))
    except OSError as error:
        raise ConfigError(f"results={str(results)!r} is not writable: {error.strerror}") from error


def _ended(error: BaseException, directory: RunDirectory, state: State, ranks: Ranks) -> State:
    """Record why the attempt ended early; the traceback goes to the log only."""
    failure, message = diagnose(error, ranks)
    if not is_lost(error):
        ranks.fail(f"{failure}: {message}")
    if ranks.is_first:
        log.error("%s: %s", failure, message)
    if failure is Failure.BUG:
        logging.getLogger("study.traceback").error("traceback", exc_info=error)
    status = Status.PENDING if failure in BLAMELESS else Status.FAILED
    state = replace(state, status=status, failure=failure, message=message)
    try:
        if ranks.is_first:
            directory.write_state(state)
    except OSError as also:
        log.error("the state could not be recorded: %s", also)
    if not isinstance(error, Exception):
        raise error
    return state


BLAMELESS = (Failure.STOPPED, Failure.PREEMPTED, Failure.NODE_LOST)
"""Ends that were no fault of the run: it waits to be continued."""


def diagnose(error: BaseException, ranks: Ranks = ALONE) -> tuple[Failure, str]:
    """The failure's class, and one line about it; of a lost rank what it said itself, if it had the time."""
    message = next(iter(str(error).splitlines()), type(error).__name__)
    if not is_lost(error):
        return classify(error), message
    said = ranks.last_words()
    if said is None:
        reason = re.sub(r"^\[\S+\] ", "", message).split(". ")[0]  # gloo begins with its source file and ends chatty
        return Failure.NODE_LOST, f"another of the {ranks.world_size} ranks was lost: {reason}"
    own = next((failure for failure in Failure if f": {failure}: " in said), Failure.NODE_LOST)
    return own, said


def classify(error: BaseException) -> Failure:
    if isinstance(error, DivergedError):
        return Failure.DIVERGED
    if isinstance(error, PrunedError):
        return Failure.PRUNED
    if isinstance(error, StoppedError):
        return Failure.STOPPED if error.number == signal.SIGINT else Failure.PREEMPTED
    if isinstance(error, KeyboardInterrupt):
        return Failure.STOPPED
    if is_lost(error):
        return Failure.NODE_LOST
    if isinstance(error, OSError):
        return Failure.STORAGE
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return Failure.OUT_OF_MEMORY
    return Failure.BUG


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Everything the harness says while this is active also goes to the run's own log."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger("study")
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


def talk_to_console(terminal: bool) -> logging.Handler:
    """Plain lines; on a terminal, where the bar shows progress, only what needs attention. No tracebacks."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.setLevel(logging.WARNING if terminal else logging.INFO)
    handler.addFilter(lambda record: record.name != "study.traceback")
    root = logging.getLogger("study")
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    return handler


def exit_code(state: State) -> int:
    if state.status is Status.DONE:
        return 0
    name = (state.message or "").removeprefix("stopped by ")
    return 128 + signal.Signals[name] if name in signal.Signals.__members__ else 1


def main(arguments: Sequence[str]) -> int:
    words = run_parser().parse_intermixed_args(arguments).words
    return finish(lambda: _joined(words))


def _joined(words: Sequence[str]) -> int:
    try:
        with join() as ranks:
            return _main(words, ranks)
    except LostRankError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _main(arguments: Sequence[str], ranks: Ranks) -> int:
    terminal = sys.stderr.isatty()
    handler = talk_to_console(terminal) if ranks.is_first else logging.NullHandler()
    try:
        config = resolve(arguments)
        directory = RunDirectory.of(config)
        log.info("run %s in %s", directory.identity, directory.path)
        state = run_alone(config, show_bar=terminal)
    except ConfigError as error:
        complain(f"error: {error}", ranks)
        return 2
    except (OSError, RuntimeError, MemoryError) as error:  # before the run had a state to say so in
        failure, reason = diagnose(error, ranks)
        if failure is Failure.BUG:
            raise
        complain(f"error: {failure}: {reason}", ranks)
        return 1
    except KeyboardInterrupt:
        return STOPPED
    finally:
        logging.getLogger("study").removeHandler(handler)
    if state.status is Status.DONE and ranks.is_first:
        print(summary(directory))
    return exit_code(state)


def complain(line: str, ranks: Ranks) -> None:
    """Once, not once per rank: all ranks raise the same."""
    if ranks.is_first:
        print(line, file=sys.stderr)


def summary(directory: RunDirectory) -> str:
    """The rows, one per line, and where everything is."""
    lines = [
        f"{row.metric:24s} {row.value:12.6g} {row.units}"
        + (f"  [{row.interval[0]:.6g}, {row.interval[1]:.6g}]" if row.interval else "")
        for row in read_rows(directory.rows)
    ]
    return "\n".join([*lines, *unscored.lines(unscored.read_unscored(directory.unscored)), str(directory.path)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
