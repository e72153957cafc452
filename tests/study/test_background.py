"""Copies that nobody changes, and work in a thread whose failure is not lost."""

from __future__ import annotations

import logging
import threading

import pytest
import torch

from study.background import Background, HostCopy


def test_a_copy_is_of_the_moment_it_was_taken() -> None:
    source = {"weights": torch.arange(6.0).reshape(2, 3), "step": torch.tensor(3)}
    taken = HostCopy().take(source)
    source["weights"] += 1
    source["step"] += 1
    assert taken["weights"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert taken["step"].item() == 3


def test_the_next_copy_takes_no_more_memory() -> None:
    copy, source = HostCopy(), {"weights": torch.randn(5), "half": torch.randn(3).bfloat16()}
    first = {name: tensor.data_ptr() for name, tensor in copy.take(source).items()}
    second = copy.take({name: tensor + 1 for name, tensor in source.items()})
    assert {name: tensor.data_ptr() for name, tensor in second.items()} == first
    assert torch.equal(second["half"], source["half"] + 1)


def test_whoever_keeps_nothing_copies_nothing() -> None:
    assert HostCopy().take({"weights": torch.ones(2)}, keep=False) == {}


def test_work_is_done_in_order_and_waited_for() -> None:
    background, done, may_go = Background(), [], threading.Event()

    def first() -> None:
        assert may_go.wait(10)
        done.append(1)

    background.start(first)
    background.check()  # under way, and nothing wrong with it
    assert done == []
    may_go.set()
    background.start(lambda: done.append(2))
    background.wait()
    assert done == [1, 2]
    background.wait()


def fail() -> None:
    raise OSError(28, "No space left on device")


def test_a_failure_is_raised_once_to_whoever_asks_next() -> None:
    background = Background()
    for ask in (background.wait, lambda: background.start(lambda: pytest.fail("went on"))):
        background.start(fail)
        with pytest.raises(OSError, match="No space left on device"):
            ask()
        background.check()


def test_a_failure_at_the_end_is_said(caplog: pytest.LogCaptureFixture) -> None:
    background = Background()
    background.start(fail)
    with caplog.at_level(logging.ERROR):
        background.close()
    assert "No space left on device" in caplog.text
