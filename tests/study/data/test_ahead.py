"""Decoding ahead never changes what comes out, stays within what is expected, and ends with whoever asked for it."""

import gc
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from study.data.ahead import Ahead, _stop, thread_count
from study.strict import ConfigError

SHAPE = (3, 2, 2)


@dataclass
class Decoder:
    """Images whose pixels tell their number; those `bad` cannot be decoded; none begins before `gate` opens."""

    bad: frozenset[int] = frozenset()
    gate: threading.Event = field(default_factory=threading.Event)
    decoded: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.gate.set()

    def __call__(self, number: int) -> np.ndarray:
        self.gate.wait()
        self.decoded[number] += 1
        if number in self.bad:
            raise ValueError(f"image {number} is damaged")
        return np.full(SHAPE, number, np.uint8)


def expected(numbers: Tensor) -> Tensor:
    return numbers.to(torch.uint8)[:, None, None, None].expand(-1, *SHAPE)


numbers = st.lists(st.integers(0, 20), max_size=6).map(lambda given: torch.tensor(given, dtype=torch.int64))
steps = st.lists(
    st.one_of(numbers.map(lambda n: ("take", [n])), st.lists(numbers, max_size=4).map(lambda n: ("expect", n)))
)


@given(steps, st.integers(1, 4))
def test_whatever_is_expected_what_is_taken_is_what_was_asked_for(plan: list[tuple[str, list[Tensor]]], n: int) -> None:
    ahead = Ahead(Decoder(), SHAPE, threads=n)
    for act, batches in plan:
        if act == "expect":
            ahead.expect(batches)
        else:
            assert torch.equal(ahead.take(batches[0]), expected(batches[0]))


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.frozensets(st.integers(0, 20), max_size=4))
def test_the_first_damaged_image_of_a_batch_is_named_whoever_met_it_first(
    asked: list[int], bad: frozenset[int]
) -> None:
    ahead = Ahead(Decoder(bad), SHAPE, threads=3)
    batch = torch.tensor(asked)
    ahead.expect([batch])
    first = next((number for number in asked if number in bad), None)
    if first is None:
        assert torch.equal(ahead.take(batch), expected(batch))
    else:
        with pytest.raises(ValueError, match=rf"^image {first} is damaged$"):
            ahead.take(batch)
    assert torch.equal(ahead.take(torch.tensor([30, 31])), expected(torch.tensor([30, 31])))  # the threads live on


def test_each_expected_image_is_decoded_once_and_nothing_else_is() -> None:
    decoder = Decoder()
    ahead = Ahead(decoder, SHAPE, threads=2)
    batches = torch.arange(60).split(4)
    for turn, batch in enumerate(batches):
        ahead.expect(batches[turn : turn + 3])
        ahead.take(batch)
        assert max(decoder.decoded) < 4 * (turn + 3)
    assert decoder.decoded == Counter(range(60))


def test_what_is_expected_is_decoded_before_it_is_asked_for() -> None:
    decoder, batch = Decoder(), torch.arange(5)
    ahead = Ahead(decoder, SHAPE, threads=2)
    ahead.expect([batch])
    ahead.take(torch.tensor([9]))  # behind the others
    while sum(decoder.decoded.values()) < 6:
        pass
    decoder.gate.clear()  # nothing more can be decoded
    assert torch.equal(ahead.take(batch), expected(batch))


def test_what_is_no_longer_expected_is_not_decoded() -> None:
    decoder = Decoder()
    decoder.gate.clear()
    ahead = Ahead(decoder, SHAPE, threads=1)
    ahead.expect(torch.arange(0, 80).split(8))
    ahead.expect([torch.arange(100, 104)])
    decoder.gate.set()
    assert torch.equal(ahead.take(torch.arange(100, 104)), expected(torch.arange(100, 104)))
    assert set(decoder.decoded) <= {0, *range(100, 104)}  # 0 was in hand


def test_the_threads_end_with_whoever_asked() -> None:
    before = set(threading.enumerate())
    ahead = Ahead(Decoder(), SHAPE, threads=3)
    ahead.expect(torch.arange(100).split(10))
    own = set(threading.enumerate()) - before
    assert len(own) == 3
    del ahead
    gc.collect()
    assert not any(thread.is_alive() for thread in own)


class TakenInBetween(SimpleQueue[Any]):
    """It has a task when asked, which a thread takes before we do."""

    def empty(self) -> bool:
        return False

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        assert not block, "would wait for ever"
        return super().get(block, timeout)


def test_the_end_does_not_wait_for_a_task_that_a_thread_has_taken() -> None:
    tasks = TakenInBetween()
    tasks.put((None, 0))
    _stop(tasks, [])
    with pytest.raises(Empty):
        tasks.get_nowait()


SLOW = """
import os, signal, sys, time
import numpy as np, torch
from study.data.ahead import Ahead
ahead = Ahead(lambda number: time.sleep(0.05) or np.zeros((1, 1, 1), np.uint8), (1, 1, 1), threads=2)
ahead.expect(torch.arange(1_000_000).split(100_000))
"""
STOPPED = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
os.kill(os.getpid(), signal.SIGTERM)
ahead.take(torch.arange(99))
"""


@pytest.mark.parametrize(("end", "code"), [("raise ValueError('no')", 1), (STOPPED, 5)])
def test_a_process_ends_though_much_is_expected(end: str, code: int) -> None:
    """Half a day's decoding is under way; the process ends in the way it was to, and at once."""
    done = subprocess.run([sys.executable, "-c", SLOW + end], capture_output=True, text=True, timeout=120)
    assert done.returncode == code
    assert "Fatal" not in done.stderr


@pytest.mark.parametrize(("given_threads", "ranks", "most"), [("3", "1", 3), ("", "1000", 1), ("2", "8", 2)])
def test_how_many_threads(monkeypatch: pytest.MonkeyPatch, given_threads: str, ranks: str, most: int) -> None:
    monkeypatch.setenv("DATA_THREADS", given_threads)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert thread_count() == most


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_bad_number_of_threads_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DATA_THREADS", value)
    with pytest.raises(ConfigError, match=rf"DATA_THREADS='{value}' is not valid: must be a number of threads"):
        thread_count()


def test_decoding_uses_every_thread() -> None:
    """Three images that each wait for the others come out only if three threads decode at once."""
    barrier = threading.Barrier(3)

    def decode(number: int) -> np.ndarray:
        barrier.wait(60)
        return np.full(SHAPE, number, np.uint8)

    together: Callable[[int], np.ndarray] = decode
    assert torch.equal(Ahead(together, SHAPE, threads=3).take(torch.arange(3)), expected(torch.arange(3)))
