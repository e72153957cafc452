"""One execution of a run, from its newest checkpoint to its rows.

Of several ranks all train, validate and sample; only rank 0 touches a file, while the others wait for it.
A checkpoint is written while training goes on: what a kill, or a full disk, can cost is one interval and the time
that this takes.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from types import ModuleType
from typing import Any

from torch import Tensor

from study.atomic import write_json
from study.background import Background, HostCopy
from study.checkpoint import Checkpoint, CheckpointFolder, crossed
from study.config import RunConfig
from study.interruption import PrunedError, StoppedError, StopRequest
from study.progress import TrainingProgress
from study.results import Row, write_rows
from study.rows import PROVENANCE, run_rows
from study.run_directory import Curve, RunDirectory, State, Status
from study.sample import Samples
from study.sample_together import draw_together
from study.trackers import Track, open_trackers
from study.train import Trainer, Validation
from study.utilisation import peak_of, utilisation

log = logging.getLogger("study.run")

HEARTBEAT = 10.0  # seconds

Hear = Callable[[int, float], bool]
"""Told the images trained on and the validation loss, as often as it is measured; true: do not go on."""


def quality() -> ModuleType:
    """Scoring, imported when a run asks for it: torch-fidelity and torchvision take seconds to import."""
    return importlib.import_module("study.quality")


class Attempt:
    """The training loop and what follows it. `curve` and `trackers` are rank 0's."""

    def __init__(
        self,
        config: RunConfig,
        trainer: Trainer,
        directory: RunDirectory,
        state: State,
        facts: dict[str, str],
        stop: StopRequest,
        hear: Hear,
    ) -> None:
        self.config, self.trainer, self.directory, self.ranks = config, trainer, directory, trainer.ranks
        self.state, self.stop, self._hear = state, stop, hear
        self._pruned: PrunedError | None = None
        self.closing = ExitStack()
        self.folder = CheckpointFolder(directory.checkpoints, directory.identity, config.log.keep_every)
        self.background, self._copy = Background(), HostCopy()
        self.closing.callback(self.background.close)
        resumed = self._resume()
        self.seconds = float(resumed["seconds"])  # spent training, over all attempts
        self.validation_due = bool(resumed["validation_due"])
        before: Mapping[str, str] = resumed.get("facts", {"ranks": resumed.get("ranks", "")})
        self.facts = facts | {name: _with(before.get(name, ""), facts[name]) for name in PROVENANCE if name in facts}
        self.trackers: list[Track] = []
        if self.ranks.is_first:
            self._open(int(resumed["curve_lines"]), int(resumed.get("speed_lines", 0)))
        self.peak = self.ranks.first_alone(lambda: peak_of(config, trainer.device))
        self._clock = time.monotonic()
        self._beat = time.monotonic()
        self._seconds_logged = self.seconds

    def _resume(self) -> Mapping[str, Any]:
        """Become what the newest whole checkpoint holds: rank 0 reads it, the others are sent it."""
        self._found: dict[str, Tensor] = {}
        facts = self.ranks.first_alone(self._restore_newest)
        if facts is None:
            return {"curve_lines": 0, "seconds": 0.0, "validation_due": False}
        tensors = self.ranks.broadcast(self._found, self.trainer.own)
        if not self.ranks.is_first:
            self.trainer.restore(tensors, facts["trainer"])
        self._found = {}
        return facts

    def _restore_newest(self) -> dict[str, Any] | None:
        """What it found waits in `_found` for the other ranks."""
        self.folder.clean()
        found = self.folder.restore_newest(
            lambda checkpoint: self.trainer.restore(checkpoint.tensors, checkpoint.facts["trainer"])
        )
        if found is None:
            return None
        log.info("continuing from the checkpoint at %d of %d images", found.images, self.config.train.images)
        self._found = found.tensors if self.ranks.world_size > 1 else {}
        return found.facts

    def _open(self, curve_lines: int, speed_lines: int) -> None:
        self.curve = Curve(self.directory.curve, keep=curve_lines)
        self.speed = Curve(self.directory.speed, keep=speed_lines)
        for curve in (self.curve, self.speed):
            self.closing.callback(curve.close)
        identity, path = self.directory.identity, self.directory.path
        self.trackers = open_trackers(self.config, identity, path, self.trainer.images, self.closing)

    def train(self, show_bar: bool) -> None:
        total, every = self.config.train.images, self.config.log.every
        validate_every, save_every = self.config.train.validate_every, self.config.log.checkpoint_every
        keep_every = self.config.log.keep_every
        self.progress = self.closing.enter_context(
            TrainingProgress(total, self.trainer.images, self.config.train.batch, self.trainer.device, show_bar)
        )
        self._clock = time.monotonic()
        if self.validation_due:
            self._pausing_clock(self._validate)
            self.stop.check()
        while self.trainer.images < total:
            before = self.trainer.images
            self.trainer.step()
            self.background.check()
            now = self.trainer.images
            if crossed(before, now, every) or now == total:
                self._log()
            self.validation_due = crossed(before, now, validate_every) and now < total
            if self.validation_due:
                self._pausing_clock(self._validate)
            stopping = self.stop.agreed()  # asked once: nothing may come between saving and leaving
            due = crossed(before, now, save_every) or crossed(before, now, keep_every)
            last = now == total or stopping or self._pruned is not None
            if due or last:
                self._pausing_clock(self._save)
            if last:
                self.ranks.first_alone(self.background.wait)
            if self._pruned:
                raise self._pruned
            if stopping:
                self.stop.check_here()

    def finish(self) -> None:
        """From trained weights to rows. Nothing here changes the weights, so a killed one simply starts over."""
        decays = self.config.train.ema
        validations = {decay: self.trainer.validate(index, self.stop.check) for index, decay in enumerate(decays)}
        self._track_validation(validations[decays[0]])
        self.stop.check()
        samples = None
        if self.config.sample.count:
            told = self.progress.sampling(len(self.ranks.share(self.config.sample.count)))
            samples = draw_together(self.config, self.trainer, self.directory, self.stop.check_here, told)
            self.stop.check()
        self.ranks.first_alone(lambda: self._conclude(validations, samples))

    def _conclude(self, validations: Mapping[float, Validation], samples: Samples | None) -> None:
        self.curve.sync()
        rows = run_rows(self.config, self.trainer, validations, self.seconds, self.facts, self.peak)
        if samples is not None:
            rows += self._score(samples, rows[0].provenance)
        write_rows(self.directory.rows, rows)
        self.write_state(status=Status.DONE)

    def _score(self, samples: Samples, origin: Mapping[str, str]) -> list[Row]:
        """Rows of the metrics asked for; why any stayed empty goes to `unscored.json`."""
        if not self.config.score.metrics:
            return []
        with self.stop.at_once():
            rows, missing = quality().score_rows(self.config, samples, origin, self.trainer.device)
        self.stop.check_here()  # again: an extractor may have taken the signal's exception for a failure of its own
        for metric, reason in missing.items():
            log.warning("%s stays empty: %s", metric, reason)
        if missing:
            write_json(self.directory.unscored, missing)
        return rows

    def write_state(self, **changes: Any) -> None:
        self.state = self.directory.write_state(self.state, images=self.trainer.images, **changes)
        self._beat = time.monotonic()

    def _log(self) -> None:
        since = self.trainer.logged
        values = self.trainer.take_loss()
        self._lap()
        speed = (self.trainer.images - since) / max(self.seconds - self._seconds_logged, 1e-9)
        self._seconds_logged = self.seconds
        self._track(values)
        if self.ranks.is_first:
            self.progress.tell(self.trainer.images, values["loss"], speed, self._track_speed(speed))
            if time.monotonic() - self._beat > HEARTBEAT:
                self.write_state()

    def _track_speed(self, speed: float) -> float | None:
        """Apart from the curve, in which nothing may differ between two executions; the utilisation comes back."""
        share = utilisation(self.config, speed, self.peak, self.ranks.world_size)
        values = {"images_per_second": speed} | ({} if share is None else {"mfu": share})
        self.speed.append({"images": self.trainer.images, **values, "ranks": self.ranks.world_size})
        for track in self.trackers:
            track(self.trainer.images, values)
        return share

    def _validate(self) -> None:
        """Asked to stop meanwhile, it is still due when the run goes on."""
        with suppress(StoppedError):
            validation = self.trainer.validate(check=self.stop.check)
            self._track_validation(validation)
            self.validation_due = False
            if self.ranks.first_alone(lambda: self._hear(self.trainer.images, validation.mean)):
                self._pruned = PrunedError(self.trainer.images, validation.mean)

    def _track_validation(self, validation: Validation) -> None:
        bins = {f"val_loss_bin{number}": loss for number, loss in enumerate(validation.bins)}
        self._track({"val_loss": validation.mean, **bins})
        if self.ranks.is_first:
            log.info("%d images  validation loss %.4f", self.trainer.images, validation.mean)

    def _track(self, values: dict[str, float]) -> None:
        if self.ranks.is_first:
            self.curve.append({"images": self.trainer.images, **values})
            for track in self.trackers:
                track(self.trainer.images, values)

    def _save(self) -> None:
        self.trainer.check_finite()
        if self.ranks.world_size > 1 and len(set(self.ranks.exchange(self.trainer.fingerprint()))) > 1:
            raise RuntimeError("the weights of the ranks are no longer equal: are their machines of different kinds?")
        self.ranks.first_alone(self.background.wait)  # for the one before
        tensors = self._snapshot()
        self.ranks.first_alone(lambda: self._begin_checkpoint(tensors))

    def _snapshot(self) -> dict[str, Tensor]:
        """Rank 0's, which nobody changes until it is written; what is split is gathered, tensor by tensor."""
        tensors = self.trainer.tensors()
        if not self.trainer.sharded and not self.config.machine.write_behind:
            return tensors
        return self._copy.take(tensors, keep=self.ranks.is_first)

    def _begin_checkpoint(self, tensors: dict[str, Tensor]) -> None:
        facts = {
            "trainer": self.trainer.facts(),
            "data": self.trainer.data_digests(),
            "curve_lines": self.curve.lines,
            "speed_lines": self.speed.lines,
            "seconds": self.seconds,
            "validation_due": self.validation_due,
            "facts": {name: self.facts[name] for name in PROVENANCE if name in self.facts},
        }
        checkpoint = Checkpoint(self.trainer.images, tensors, facts)
        self.background.start(lambda: self._write_checkpoint(checkpoint))
        if not self.config.machine.write_behind:
            self.background.wait()
        self.write_state()

    def _write_checkpoint(self, checkpoint: Checkpoint) -> None:
        self.curve.sync()
        self.folder.save(checkpoint)

    def _pausing_clock(self, work: Callable[[], None]) -> None:
        """What is not training does not count as training time."""
        self._lap()
        work()
        self._clock = time.monotonic()

    def _lap(self) -> None:
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now


def _with(before: str, now: str) -> str:
    """`2, 4` if a run went on with four ranks after two, and likewise two commits: rows name all that made them."""
    known = before.split(", ") if before else []
    return ", ".join(known if now in known else [*known, now])
