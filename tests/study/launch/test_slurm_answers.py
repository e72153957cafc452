"""What the cluster launcher makes of SLURM's own words, and of a user's environment."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from submitit.core.utils import FailedJobError, FailedSubmissionError

from study.launch import slurm_cluster, slurm_limits
from study.launch.slurm_limits import Cap, Limits
from study.launch.slurm_script import is_refusal, without_foreign


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (FailedJobError("sbatch: error: Batch job submission failed: Invalid qos"), True),
        (FailedJobError("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"), False),
        (FailedSubmissionError('Could not make sense of sbatch output ""'), False),
    ],
)
def test_only_a_refusal_says_that_nothing_was_taken(error: Exception, refused: bool) -> None:
    assert is_refusal(error) is refused


def test_a_users_variables_do_not_overrule_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SBATCH_TIMELIMIT", "SBATCH_GPUS_PER_NODE", "SBATCH_JOB_NAME", "SBATCH_ACCOUNT", "SQUEUE_STATES"):
        monkeypatch.setenv(name, "1")
    before = dict(os.environ)
    with without_foreign({"time": 60, "gpus-per-node": 1}):
        assert [name for name in os.environ if name.startswith("SBATCH_")] == ["SBATCH_ACCOUNT"]
    assert dict(os.environ) == before
    assert "SQUEUE_STATES" not in slurm_cluster.plain()
    assert slurm_cluster.plain()["SLURM_TIME_FORMAT"] == "standard"


@pytest.mark.parametrize("own", ["mem", "mem-per-cpu"])
def test_memory_said_by_a_variable_does_not_contradict_what_the_launcher_says(
    monkeypatch: pytest.MonkeyPatch, own: str
) -> None:
    for name in ("SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU", "SBATCH_MEM_PER_NODE", "SLURM_MEM_PER_CPU"):
        monkeypatch.setenv(name, "1")
    with without_foreign({"time": 60}):
        assert sum(name.startswith("SBATCH_MEM") for name in os.environ) == 3  # the launcher says nothing of it
    with without_foreign({own: "1G"}):
        assert not [name for name in os.environ if "_MEM_PER_" in name]


def test_scancel_ends_what_it_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not only those of an account, or in a state, that a user has put into a variable."""
    (tmp_path / "scancel").write_text(f"#!/bin/sh\nenv > {tmp_path}/seen; echo $1 >> {tmp_path}/seen\n")
    (tmp_path / "scancel").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SCANCEL_STATE", "PENDING")
    assert slurm_cluster.cancel("mine.abcd") == ""
    seen = (tmp_path / "seen").read_text()
    assert seen.endswith("--name=mine.abcd\n")
    assert "SCANCEL_" not in seen


ASSOCIATIONS = "lab||4|normal,tight|\nlab|gpu|6|normal,tight|tight\n"

USERS = {"format=DefaultAccount": "lab\n", "format=Name,MaxSubmitJobsPerUser": "normal|\ntight|2\nnight|30\n"}

PARTITIONS = (
    "PartitionName=low Default=YES QoS=N/A\nPartitionName=gpu Default=NO QoS=N/A\n"
    "PartitionName=dark Default=NO QoS=night\n"
)


@pytest.mark.parametrize(
    ("flags", "variable", "cap"),
    [
        ({}, "", Cap(4, "--account=lab")),
        ({"qos": "tight"}, "", Cap(2, "--qos=tight")),
        ({}, "tight", Cap(2, "--qos=tight")),
        ({"qos": "normal"}, "tight", Cap(4, "--account=lab")),
        ({"partition": "gpu"}, "", Cap(2, "--qos=tight")),  # the QOS that goes with that association
        ({"partition": "gpu", "qos": "normal"}, "", Cap(6, "--account=lab")),
        ({"partition": "dark", "qos": "tight"}, "", Cap(30, "--qos=night")),  # a partition's QOS goes first
        ({"account": "free"}, "", None),
    ],
)
def test_only_the_limit_of_what_is_asked_for_counts(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, str], variable: str, cap: Cap | None
) -> None:
    def answer(*command: str) -> str:
        if command[0] == "scontrol":
            return PARTITIONS if "partition" in command else "ClusterName = c\nAccountingStorageType = x/slurmdbd\n"
        if "assoc" in command:
            assert "cluster=c" in command
            return ASSOCIATIONS if "account=lab" in command else "free|||normal|\n"
        return USERS[command[-1]]

    monkeypatch.setattr(slurm_limits, "ask", answer)
    monkeypatch.setenv("SBATCH_QOS", variable)
    assert slurm_limits.limits(flags).cap == cap


def test_room_is_what_the_nearer_of_both_bounds_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_limits, "ask", lambda *command: "1\n2\n3\n" if "--qos=tight" in command else None)
    assert Limits("c", 10, 20, Cap(5, "--qos=tight")).room(queued=7) == 2
    assert Limits("c", 10, 8, Cap(5, "--qos=tight")).room(queued=7) == 1
    assert Limits("c", 10, 8, Cap(2, "--qos=tight")).room(queued=7) == 0


def test_a_controller_just_started_is_asked_again_until_it_heard_from_its_nodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = ["Requested node configuration is not available"] * 2 + [""]
    monkeypatch.setattr(slurm_cluster, "_refusal", lambda words: answers.pop(0))
    monkeypatch.setattr(slurm_cluster, "running_for", lambda: 5.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert slurm_cluster.refusal({}) == ""
    answers = ["Invalid account"]
    assert slurm_cluster.refusal({}) == "Invalid account"
    answers = ["Requested node configuration is not available"]
    monkeypatch.setattr(slurm_cluster, "running_for", lambda: 61.0)
    assert "not available" in slurm_cluster.refusal({})


def test_how_long_the_controller_runs_is_read_from_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - 30))
    monkeypatch.setattr(slurm_cluster, "ask", lambda *command: f"BOOT_TIME               = {began}\n")
    assert slurm_cluster.running_for() == pytest.approx(30, abs=5)
    monkeypatch.setattr(slurm_cluster, "ask", lambda *command: None)
    assert slurm_cluster.running_for() == float("inf")


@pytest.mark.parametrize(("said", "array"), [("max_array_tasks=5", 5), ("bf_interval=30", 20)])
def test_the_smaller_bound_of_an_array_counts(monkeypatch: pytest.MonkeyPatch, said: str, array: int) -> None:
    told = f"ClusterName = c\nMaxArraySize = 20\nMaxJobCount = 99\nSchedulerParameters = {said}\n"
    monkeypatch.setattr(slurm_limits, "ask", lambda *command: told)
    assert slurm_limits.limits() == Limits("c", array, 99)
    monkeypatch.setattr(slurm_limits, "ask", lambda *command: told.replace("= 20", "= 0"))
    assert slurm_limits.limits().array == 1
