"""Weights split between ranks (FSDP2): the steps, the checkpoints and the samples of one process, in less memory."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import study.train
import tests.study.ranked as faults
from study.checkpoint import CheckpointFolder
from study.compose import resolve
from study.config import RunConfig
from study.distributed import Ranks
from study.parallel import check_splittable, local_of, whole_of
from study.run import run
from study.run_directory import RunDirectory, Status
from study.strict import ConfigError
from study.train import Trainer
from tests.study.ranked import do_run, together
from tests.study.test_distributed import BACKBONES, equal_steps
from tests.study.test_distributed_runs import SMALL, STOPPED, same_bytes, same_curve

SHARD = "machine.shard=true"
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("backbone", "world_size"),
    [*((backbone, 2) for backbone in BACKBONES), ("dit-tiny", 4), ("diffussm-tiny", 4), ("unet-tiny", 4)],
)
def test_steps_of_split_weights_are_those_of_one_process(backbone: str, world_size: int) -> None:
    """Losses, the norm of clipped gradients, and validations of averages, within 1e-5."""
    words = [f"backbone={backbone}", *BACKBONES[backbone], "train.batch=8", "train.validate_images=5", "train.clip=0.5"]
    words += ["train.validate_bins=3", "machine.sample_batch=2", "train.flip=true", "train.lr=1e-4", SHARD]
    assert together(world_size, equal_steps, words, [f"machine.micro_batch={8 // world_size}"]) == [0] * world_size


@pytest.mark.parametrize(
    "words",
    [
        ["machine.micro_batch=2", "train.batch=5"],  # shares of 2 and 3: one pass and two
        ["train.batch=4", "train.images=9"],  # the last batch has one image: one rank has none
        ["machine.checkpoint_activations=true", "train.batch=5"],
    ],
)
def test_uneven_shares_of_split_weights(words: list[str]) -> None:
    common = ["backbone=dit-tiny", "backbone.depth=1", "train.validate_images=2", SHARD, *words]
    assert together(2, equal_steps, common, ["machine.micro_batch=0"]) == [0, 0]


def hold_a_part(ranks: Ranks, words: list[str]) -> None:
    """After a step: weights, averages and moments together are a third of what one process has, padding apart."""
    alone, split = Trainer(resolve(words), CPU), Trainer(resolve([*words, SHARD]), CPU, ranks)
    split.meet()
    for trainer in (alone, split):
        trainer.step()
    sizes = [sum(local_of(tensor).numel() for tensor in each.tensors().values()) for each in (alone, split)]
    assert sum(ranks.exchange(sizes[1])) <= 1.02 * sizes[0]  # step counts are on all
    assert sizes[1] < 0.4 * sizes[0]
    whole = {name: whole_of(tensor) for name, tensor in split.tensors().items()}
    for name, expected in alone.tensors().items():
        torch.testing.assert_close(whole[name], expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(local_of(split.own(name, whole[name])), local_of(split.tensors()[name]))


def test_each_rank_holds_its_part(tmp_path: Path) -> None:
    words = ["backbone=dit-tiny", "backbone.depth=1", "train.batch=6", "train.ema=[0.9,0.5]"]
    assert together(3, hold_a_part, words) == [0, 0, 0]


def train_reduced(ranks: Ranks, words: list[str]) -> None:
    """Emulated if need be: split weights stay float32, and blocks that are computed again see them whole."""
    study.train.check_precision = lambda precision, device: None  # type: ignore[assignment]
    split = Trainer(resolve([*words, SHARD, "machine.checkpoint_activations=true"]), CPU, ranks)
    whole = Trainer(resolve(words), CPU)
    split.meet()
    for _ in range(2):
        split.step()
        whole.step()
    assert {tensor.dtype for tensor in split.parameters} == {torch.float32}
    assert split.take_loss() == pytest.approx(whole.take_loss(), rel=0.01)
    assert split.validate().mean == pytest.approx(whole.validate().mean, rel=0.01)


@pytest.mark.parametrize("backbone", ["dit-tiny", "diffussm-tiny"])
def test_split_weights_in_bf16(backbone: str) -> None:
    words = [f"backbone={backbone}", "backbone.depth=1", "train.batch=4", "train.precision=bf16"]
    assert together(2, train_reduced, [*words, "train.validate_images=4", "train.validate_bins=2"]) == [0, 0]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return resolve([*SMALL, f"results={tmp_path / 'results'}", SHARD])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    config = resolve([*SMALL, f"results={tmp_path_factory.mktemp('alone')}", SHARD])
    assert run(config).status is Status.DONE
    return RunDirectory.of(config)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    config = resolve([*SMALL, f"results={tmp_path_factory.mktemp('three')}", SHARD])
    assert together(3, do_run, config) == [0, 0, 0]
    return RunDirectory.of(config)


def test_three_ranks_leave_what_one_leaves(three: RunDirectory, alone: RunDirectory) -> None:
    same_curve(three, alone)
    assert three.identity == alone.identity
    assert {path.name for path in three.path.iterdir()} == {path.name for path in alone.path.iterdir()}
    mine, theirs = (CheckpointFolder(one.checkpoints, one.identity).load(48).tensors for one in (three, alone))
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-5)


def test_killed_and_resumed_with_the_same_count_every_byte_is_the_same(config: RunConfig, three: RunDirectory) -> None:
    assert together(3, do_run, config, faults.kill_rank_1) == [1, -signal.SIGKILL, 1]
    assert together(3, do_run, config) == [0, 0, 0]
    same_bytes(RunDirectory.of(config), three)


def test_stopped_and_resumed_split_or_whole(config: RunConfig, tmp_path: Path, alone: RunDirectory) -> None:
    """Two ranks with split weights, then four; two with whole ones; one ends it."""
    directory = RunDirectory.of(config)
    assert together(2, do_run, config, faults.ask_rank_1_to_stop) == [STOPPED, STOPPED]
    assert together(4, do_run, config, faults.stop_rank_3) == [STOPPED] * 4
    assert directory.read_state().images == 42
    whole = resolve([*SMALL, f"results={config.results}"])
    assert run(whole).status is Status.DONE
    assert [entry["ranks"] for entry in json.loads(directory.provenance.read_text())] == ["2", "4", "1"]
    same_curve(directory, alone)


def test_begun_whole_and_ended_split(config: RunConfig, alone: RunDirectory) -> None:
    whole = resolve([*SMALL, f"results={config.results}"])
    assert together(2, do_run, whole, faults.ask_rank_1_to_stop) == [STOPPED, STOPPED]
    assert together(2, do_run, config) == [0, 0]
    same_curve(RunDirectory.of(config), alone)


@given(st.integers(1, 20), st.integers(1, 6))
def test_parts_are_torchs_chunks(length: int, world_size: int) -> None:
    """`part_of` follows the rule that FSDP2 itself splits by."""
    whole, size = torch.arange(length), -(-length // world_size)
    chunks = list(whole.chunk(world_size))
    for rank in range(world_size):
        expected = chunks[rank] if rank < len(chunks) else whole[:0]
        assert torch.equal(whole[min(rank * size, length) :][:size], expected)


def test_what_cannot_be_split_is_refused() -> None:
    blocks = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
    check_splittable(blocks)
    blocks[2].weight = blocks[0].weight
    with pytest.raises(ValueError, match=r"machine\.shard=true is not valid: .* block 2 shares parameters"):
        check_splittable(blocks)
    blocks[1].scale = torch.nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"1\.scale is a scalar"):
        check_splittable(blocks)


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("machine.compile=true", r"machine\.shard=True is not valid: must be false with compile=true"),
        ("train.precision=fp16", r"machine\.shard=true is not valid: must be false with train\.precision=fp16"),
    ],
)
def test_what_does_not_go_together(word: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        resolve([SHARD, word])
