"""A run whose listener has seen enough: saved, recorded, and, continued, no different from one left alone."""

from __future__ import annotations

from study.compose import resolve
from study.run import run
from study.run_directory import Failure, RunDirectory, Status, read_curve
from tests.study.short_run import equal_to


def test_a_pruned_run_keeps_its_checkpoint_and_continues_to_the_same_bytes(
    undisturbed: RunDirectory, words: list[str]
) -> None:
    heard: list[tuple[int, float]] = []

    def hear(images: int, loss: float) -> bool:
        heard.append((images, loss))
        return images == 32

    config = resolve(words)
    state = run(config, hear=hear)
    assert (state.status, state.failure, state.images) == (Status.FAILED, Failure.PRUNED, 32)
    curve = read_curve(undisturbed.curve)
    assert heard == [(point["images"], point["val_loss"]) for point in curve if point.get("val_loss")][:2]
    assert not RunDirectory.of(config).rows.exists()
    equal_to(undisturbed, words)
