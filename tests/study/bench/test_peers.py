"""Foreign modules are timed only if they compute what ours does, or say that they need not."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.bench.cell import answer
from study.bench.config import Cell, Network
from study.bench.peers import check_peer
from study.bench.workload import make_work

FILE = Path(__file__).with_name("peers_here.py")


def peer(function: str, source: str = str(FILE)) -> Cell:
    return Cell(Network("dit-tiny", (8, 8), peer=f"theirs={source}:{function}"))


def test_attention_written_out_agrees_and_is_timed() -> None:
    work, facts = make_work(peer("plain"))
    apart = float(facts["agreement"].split()[2])
    assert 0 < apart < 1e-4  # another order of summation, the same function
    assert work["call"]().shape == (1, 1, 8, 8)


def test_an_installed_module_is_found_by_its_name() -> None:
    _, facts = make_work(peer("plain", "tests.study.bench.peers_here"))
    assert "largest difference" in facts["agreement"]


def test_weights_of_its_own_are_told() -> None:
    _, facts = make_work(peer("own_weights"))
    assert facts["agreement"].startswith("not checked")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("untrue", "within 0.001, weights shared"),
        ("narrow", "that of ours, (2, 1, 8, 8)"),
        ("broken", "KeyError"),
        ("no_module", "returns a torch module"),
        ("absent", "has no callable absent"),
    ],
)
def test_others_are_refused_in_one_line(function: str, words: str) -> None:
    told = answer(lambda: make_work(peer(function))[1])
    assert words in told["refused"]
    assert "\n" not in told["refused"]


def test_a_module_that_is_not_installed_is_named() -> None:
    assert "no_such_package" in answer(lambda: make_work(peer("f", "no_such_package"))[1])["refused"]


@pytest.mark.parametrize("text", ["x", "x=y", "=a.py:f", "x=nowhere.py:f", "x=a.py:"])
def test_what_cannot_be_a_peer_is_refused_before_anything_starts(text: str) -> None:
    with pytest.raises(ValueError, match="name=path:callable"):
        check_peer(text)
