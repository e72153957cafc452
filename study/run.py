"""One run, start to finish: train, validate, sample, and leave rows; continue where it stopped when called again.

    python -m study.run backbone=diffussm-tiny data=digits8 train=quick backbone.M=2 seed=0

Every argument is an override in hydra's grammar: a preset (`train=quick`) or a value (`train.lr=1e-3`).
Without any: dit-tiny on digits8, about a minute. A run that is done is not done again: its rows are shown.
Exit codes: 0 done, 1 failed (see state.json), 2 bad input (nothing was left behind), 128 + n stopped by signal n.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from study.allocator import keep_freed_memory
from study.atomic import write_json
from study.checkpoint import Checkpoint, CheckpointFolder, crossed
from study.compose import resolve
from study.config import RunConfig
from study.interruption import StoppedError, StopRequest
from study.lease import Holding, already_held, hold
from study.progress import TrainingProgress
from study.provenance import provenance
from study.results import Row, read_rows, write_rows
from study.rows import run_rows
from study.run_directory import Curve, Failure, RunDirectory, State, Status
from study.sample import Samples, draw_samples
from study.strict import ConfigError
from study.trackers import check_trackers, open_trackers
from study.train import DivergedError, Trainer, Validation

log = logging.getLogger("study.run")  # not __name__, which is __main__ on the command line

HEARTBEAT = 10.0  # seconds


def run_alone(config: RunConfig, show_bar: bool = False) -> State:
    """`run`, refused while another process has this very run in hand."""
    return run(config, show_bar, hold)


def run(config: RunConfig, show_bar: bool = False, holding: Callable[[Path], Holding] = already_held) -> State:
    """Do the run, or what is left of it. Bad input is a ConfigError before anything is written; all else a state."""
    directory = RunDirectory.of(config)
    state = directory.read_state()
    if state.status is Status.DONE:
        return state
    trainer, facts = prepare(config)
    with holding(directory.path):
        return _run(config, show_bar, directory, trainer, facts)


def _run(config: RunConfig, show_bar: bool, directory: RunDirectory, trainer: Trainer, facts: dict[str, str]) -> State:
    state = directory.read_state()  # again: it may have been finished while this process got ready
    if state.status is Status.DONE:
        return state
    directory.create(config)
    with log_file(directory.log), StopRequest() as stop:
        try:
            attempts = state.attempts + 1
            state = directory.write_state(state, status=Status.RUNNING, attempts=attempts, failure=None, message=None)
            directory.add_provenance(attempts, facts)
            attempt = Attempt(config, trainer, directory, state, facts, stop)
            with attempt.closing:
                attempt.train(show_bar)
                attempt.finish()
            return attempt.state
        except BaseException as error:
            return _ended(error, directory, replace(state, images=trainer.images))


def prepare(config: RunConfig) -> tuple[Trainer, dict[str, str]]:
    """Everything that can refuse a run, done before a single file is written; and where its results come from."""
    device = pick_device(config.machine.device)
    allocator = keep_freed_memory() if config.machine.keep_freed_memory else "as the system sets it"
    if config.machine.threads:
        torch.set_num_threads(config.machine.threads)
    torch.set_float32_matmul_precision("highest")  # fp32 means fp32: no TF32
    torch.backends.cudnn.allow_tf32 = False
    check_trackers(config.log)
    check_writable(Path(config.results))
    for metric, reason in _quality().unscorable(config).items() if config.score.metrics else ():
        log.warning("%s will stay empty: %s", metric, reason)
    try:
        trainer = Trainer(config, device)
    except (ValueError, FileNotFoundError) as error:
        raise error if isinstance(error, ConfigError) else ConfigError(str(error)) from error
    facts = provenance(
        device,
        precision=config.train.precision,
        compile=str(config.machine.compile).lower(),
        allocator=allocator,
        train_data=trainer.draws.images.sha256,
    )
    return trainer, facts


def pick_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
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
        probe = existing / f".probe.{os.getpid()}.tmp"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise ConfigError(f"results={str(results)!r} is not writable: {error.strerror}") from error


def _quality() -> ModuleType:
    """Scoring, imported when a run asks for it: torch-fidelity and torchvision take seconds to import."""
    return importlib.import_module("study.quality")


class Attempt:
    """One execution of a run, from its newest checkpoint to its rows."""

    def __init__(
        self,
        config: RunConfig,
        trainer: Trainer,
        directory: RunDirectory,
        state: State,
        facts: dict[str, str],
        stop: StopRequest,
    ) -> None:
        self.config, self.trainer, self.directory = config, trainer, directory
        self.state, self.facts, self.stop = state, facts, stop
        self.closing = ExitStack()
        self.folder = CheckpointFolder(directory.checkpoints, directory.identity, config.log.keep_every)
        self.folder.clean()
        found = self.folder.restore_newest(self._restore)
        resumed = found.facts if found else {"curve_lines": 0, "seconds": 0.0}
        if found:
            log.info("continuing from the checkpoint at %d of %d images", trainer.images, config.train.images)
        self.seconds = float(resumed["seconds"])  # spent training, over all attempts
        self.curve = Curve(directory.curve, keep=int(resumed["curve_lines"]))
        self.closing.callback(self.curve.close)
        self.trackers = open_trackers(config, directory.identity, directory.path, trainer.images, self.closing)
        self._clock = time.monotonic()
        self._beat = time.monotonic()
        self._seconds_logged = self.seconds

    def train(self, show_bar: bool) -> None:
        total, every = self.config.train.images, self.config.log.every
        validate_every, save_every = self.config.train.validate_every, self.config.log.checkpoint_every
        keep_every = self.config.log.keep_every
        self.progress = self.closing.enter_context(
            TrainingProgress(total, self.trainer.images, self.config.train.batch, self.trainer.device, show_bar)
        )
        self._clock = time.monotonic()
        while self.trainer.images < total:
            before = self.trainer.images
            self.trainer.step()
            now = self.trainer.images
            if crossed(before, now, every) or now == total:
                self._log()
            if crossed(before, now, validate_every) and now < total:
                self._pausing_clock(self._validate)
            stopping = self.stop.number is not None  # asked once: nothing may come between saving and leaving
            due = crossed(before, now, save_every) or crossed(before, now, keep_every)
            if due or now == total or stopping:
                self._pausing_clock(self._save)
            if stopping:
                self.stop.check()

    def finish(self) -> None:
        """From trained weights to rows. Nothing here changes the weights, so a killed one simply starts over."""
        decays = self.config.train.ema
        validations = {decay: self.trainer.validate(index) for index, decay in enumerate(decays)}
        self._track_validation(validations[decays[0]])
        self.curve.sync()
        self.stop.check()
        rows = run_rows(self.config, self.trainer, validations, self.seconds, self.facts)
        if self.config.sample.count:
            samples = draw_samples(self.config, self.trainer, self.directory, self.stop.check)
            self.stop.check()
            rows += self._score(samples, rows[0].provenance)
        write_rows(self.directory.rows, rows)
        self.write_state(status=Status.DONE)

    def _score(self, samples: Samples, origin: Mapping[str, str]) -> list[Row]:
        """Rows of the metrics asked for; why any stayed empty goes to `unscored.json`."""
        if not self.config.score.metrics:
            return []
        rows, missing = _quality().score_rows(self.config, samples, origin)
        for metric, reason in missing.items():
            log.warning("%s stays empty: %s", metric, reason)
        if missing:
            write_json(self.directory.unscored, missing)
        self.stop.check()
        return rows

    def write_state(self, **changes: Any) -> None:
        self.state = self.directory.write_state(self.state, images=self.trainer.images, **changes)
        self._beat = time.monotonic()

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.trainer.restore(checkpoint.tensors, checkpoint.facts["trainer"])

    def _log(self) -> None:
        since = self.trainer.logged
        values = self.trainer.take_loss()
        self._lap()
        speed = (self.trainer.images - since) / max(self.seconds - self._seconds_logged, 1e-9)
        self._seconds_logged = self.seconds
        self._track(values)
        self.progress.tell(self.trainer.images, values["loss"], speed)
        if time.monotonic() - self._beat > HEARTBEAT:
            self.write_state()

    def _validate(self) -> None:
        self._track_validation(self.trainer.validate())

    def _track_validation(self, validation: Validation) -> None:
        bins = {f"val_loss_bin{number}": loss for number, loss in enumerate(validation.bins)}
        self._track({"val_loss": validation.mean, **bins})
        log.info("%d images  validation loss %.4f", self.trainer.images, validation.mean)

    def _track(self, values: dict[str, float]) -> None:
        self.curve.append({"images": self.trainer.images, **values})
        for track in self.trackers:
            track(self.trainer.images, values)

    def _save(self) -> None:
        self.trainer.check_finite()
        self.curve.sync()
        facts = {"trainer": self.trainer.facts(), "curve_lines": self.curve.lines, "seconds": self.seconds}
        self.folder.save(Checkpoint(self.trainer.images, self.trainer.tensors(), facts))
        self.write_state()

    def _pausing_clock(self, work: Callable[[], None]) -> None:
        """What is not training does not count as training time."""
        self._lap()
        work()
        self._clock = time.monotonic()

    def _lap(self) -> None:
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now


def _ended(error: BaseException, directory: RunDirectory, state: State) -> State:
    """Record why the attempt ended early; the traceback goes to the log only."""
    failure = classify(error)
    status = Status.PENDING if failure in (Failure.STOPPED, Failure.PREEMPTED) else Status.FAILED
    message = next(iter(str(error).splitlines()), type(error).__name__)
    log.error("%s: %s", failure, message)
    if failure is Failure.BUG:
        logging.getLogger("study.traceback").error("traceback", exc_info=error)
    state = replace(state, status=status, failure=failure, message=message)
    try:
        directory.write_state(state)
    except OSError as also:
        log.error("the state could not be recorded: %s", also)
    if not isinstance(error, Exception):
        raise error
    return state


def classify(error: BaseException) -> Failure:
    if isinstance(error, DivergedError):
        return Failure.DIVERGED
    if isinstance(error, StoppedError):
        return Failure.STOPPED if error.number == signal.SIGINT else Failure.PREEMPTED
    if isinstance(error, KeyboardInterrupt):
        return Failure.STOPPED
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
    if any(argument in ("-h", "--help") for argument in arguments):
        print(__doc__)
        return 0
    terminal = sys.stderr.isatty()
    handler = talk_to_console(terminal)
    try:
        config = resolve(arguments)
        directory = RunDirectory.of(config)
        log.info("run %s in %s", directory.identity, directory.path)
        state = run_alone(config, show_bar=terminal)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError, MemoryError) as error:  # before the run had a state to say so in
        if classify(error) is Failure.BUG:
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        print(f"error: {classify(error)}: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        logging.getLogger("study").removeHandler(handler)
    if state.status is Status.DONE:
        print(summary(directory))
    return exit_code(state)


def summary(directory: RunDirectory) -> str:
    """The rows, one per line, and where everything is."""
    lines = [
        f"{row.metric:24s} {row.value:12.6g} {row.units}"
        + (f"  [{row.interval[0]:.6g}, {row.interval[1]:.6g}]" if row.interval else "")
        for row in read_rows(directory.rows)
    ]
    return "\n".join([*lines, str(directory.path)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
