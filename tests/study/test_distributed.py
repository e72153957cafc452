"""Ranks: who they are, what they share, how they agree, and whom they wait for."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from study.compose import resolve
from study.distributed import LostRankError, RankError, Ranks, current, from_environment, is_lost, join
from study.interruption import StoppedError
from study.strict import ConfigError
from study.train import DivergedError, Trainer
from tests.study.ranked import together

VARIABLES = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


@given(st.integers(0, 200), st.integers(1, 9))
def test_shares_are_everything_once_and_even(count: int, world_size: int) -> None:
    shares = [Ranks(rank, world_size).share(count) for rank in range(world_size)]
    assert [index for share in shares for index in share] == list(range(count))
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1


def test_without_variables_a_process_is_alone() -> None:
    ranks = from_environment({"PATH": "/bin"})
    assert (ranks.rank, ranks.world_size, ranks.is_first) == (0, 1, True)
    with join() as joined:
        assert joined.world_size == current().world_size == 1


def test_torchruns_variables() -> None:
    ranks = from_environment({**VARIABLES, "RANK_TIMEOUT": "7"})
    assert (ranks.rank, ranks.world_size, ranks.local_rank, ranks.timeout) == (1, 2, 0, 7)
    assert from_environment(VARIABLES).timeout == 600


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"MASTER_PORT": None}, "MASTER_PORT not set, though RANK or WORLD_SIZE is"),
        ({"RANK": None, "LOCAL_RANK": None}, "RANK and LOCAL_RANK not set"),
        ({"RANK": "two"}, "RANK='two' is not valid: must be 0 or more"),
        ({"RANK": "2"}, "RANK=2 is not valid: must be below WORLD_SIZE=2"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE='-1' is not valid"),
        ({"RANK_TIMEOUT": "soon"}, "RANK_TIMEOUT='soon' is not valid"),
    ],
)
def test_variables_that_make_no_sense(change: Mapping[str, str | None], complaint: str) -> None:
    given = {name: value for name, value in {**VARIABLES, **change}.items() if value is not None}
    with pytest.raises(ConfigError) as refusal:
        from_environment(given)
    assert str(refusal.value).startswith(complaint)


def test_errors_that_mean_a_lost_rank() -> None:
    gloo = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    assert all(is_lost(error) for error in (gloo, LostRankError("gone"), torch.distributed.DistNetworkError("gone")))
    assert not any(is_lost(error) for error in (RuntimeError("shapes"), OSError("gloo"), torch.OutOfMemoryError()))


def test_alone_everything_is_its_own() -> None:
    ranks = Ranks()
    assert ranks.first_alone(lambda: 3) == ranks.together(lambda: 3) == ranks.largest(3) == 3
    assert ranks.exchange("a") == ["a"]
    with pytest.raises(ZeroDivisionError):
        ranks.together(lambda: 1 // 0)


def converse(ranks: Ranks) -> None:
    """What the ranks say to each other, seen from each of three."""
    assert current() is ranks
    assert ranks.first_alone(lambda: f"from {ranks.rank}") == "from 0"
    assert ranks.exchange(ranks.rank**2) == [0, 1, 4]
    assert ranks.together(lambda: ranks.rank) == ranks.rank
    assert ranks.largest(ranks.rank * 5) == 10
    assert ranks.add(torch.tensor([1.0, ranks.rank])).tolist() == [3.0, 3.0]
    tensors = {"half": torch.full((2, 3), 0.1 + ranks.rank), "step": torch.tensor(7 * ranks.rank)} | (
        {} if ranks.is_first else {"ignored": torch.zeros(1)}
    )
    received = ranks.broadcast(tensors)
    assert received.keys() == {"half", "step"}
    assert torch.equal(received["half"], torch.full((2, 3), 0.1))
    assert received["step"].dtype == torch.int64


def disagree(ranks: Ranks) -> None:
    """Whoever fails, all do."""
    with pytest.raises(DivergedError, match="in step 3, 24 images"):
        ranks.first_alone(lambda: fail(DivergedError(24, 3)))
    with pytest.raises(StoppedError, match="stopped by SIGTERM"):
        ranks.together(lambda: ranks.rank != 2 or fail(StoppedError(15)))
    with pytest.raises((RankError, Unsendable), match="nobody can read this"):
        ranks.first_alone(lambda: fail(Unsendable(1, 2)))
    assert ranks.exchange(ranks.rank) == [0, 1, 2]  # and go on


def wait_long(ranks: Ranks) -> None:
    """Longer than anyone may be silent: the one who works is not."""
    assert ranks.first_alone(lambda: time.sleep(2.5 * ranks.timeout) or "done") == "done"
    ranks.together(lambda: time.sleep(2.5 * ranks.timeout) if ranks.rank == 1 else None)


class Unsendable(Exception):  # noqa: N818
    def __init__(self, one: int, two: int) -> None:
        super().__init__("nobody can read this")


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(("act", "timeout"), [(converse, 60), (disagree, 60), (wait_long, 2)])
def test_three_ranks(act: object, timeout: float) -> None:
    assert together(3, act, timeout=timeout) == [0, 0, 0]  # type: ignore[arg-type]


BACKBONES = {
    "dit-tiny": ["backbone.depth=1"],
    "diffussm-tiny": ["backbone.depth=1"],
    "patchssm-tiny": ["backbone.depth=1"],
    "dis-tiny": ["backbone.depth=2", "backbone.drop_path=0.2"],
    "unet-tiny": ["backbone.dropout=0.1"],
}


def equal_steps(ranks: Ranks, words: list[str], alone: list[str]) -> None:
    """Two ranks against one process with micro-batches of the ranks' shares, dropout included: rounding apart."""
    shared = Trainer(resolve(words), torch.device("cpu"), ranks)
    single = Trainer(resolve([*words, *alone]), torch.device("cpu"))
    shared.meet()
    for _ in range(3):
        shared.step()
        single.step()
    expected, found = single.take_loss(), shared.take_loss()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name
    assert shared.validate().bins == pytest.approx(single.validate().bins, rel=1e-5)
    assert len(set(ranks.exchange(shared.fingerprint()))) == 1


@pytest.mark.parametrize("backbone", BACKBONES)
def test_steps_of_two_ranks_are_those_of_one(backbone: str) -> None:
    words = [f"backbone={backbone}", *BACKBONES[backbone], "train.batch=6", "train.validate_images=5"]
    words += ["train.validate_bins=3", "machine.sample_batch=2", "train.flip=true", "train.lr=1e-4"]
    assert together(2, equal_steps, words, ["machine.micro_batch=3"]) == [0, 0]


@pytest.mark.parametrize(
    "words",
    [
        ["machine.micro_batch=2", "train.batch=7"],  # shares of 3 and 4, micro-batches of 2 and 1
        ["train.batch=4", "train.images=9"],  # the last batch has one image: one rank has none
        ["machine.checkpoint_activations=true", "train.batch=5"],
    ],
)
def test_uneven_shares_are_weighted_by_images(words: list[str]) -> None:
    common = ["backbone=dit-tiny", "backbone.depth=1", "train.validate_images=2", *words]
    assert together(2, equal_steps, common, ["machine.micro_batch=0"]) == [0, 0]


def test_a_batch_must_have_an_image_for_every_rank() -> None:
    with pytest.raises(ValueError, match=r"train\.batch=2 is not valid with 3 ranks: must be at least one image each"):
        Trainer(resolve(["train.batch=2"]), torch.device("cpu"), Ranks(0, 3))
