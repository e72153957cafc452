"""What a cluster refuses, hides or loses: one line each, nothing submitted twice, no number forgotten."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from study.launch import slurm_cluster, slurm_known
from study.launch.slurm_record import open_records
from tests.slurm.cluster import ACCOUNTING, Cluster, missing
from tests.slurm.conftest import skip_if
from tests.slurm.disturbed import SWEEP, Study, call, command

Begun = Callable[[str], Any]
HELD = "launcher.slurm.hold=true"  # stays in the queue


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a script in front of one of SLURM's programs; within it, REAL is the true one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    path = os.environ["PATH"]

    def put(name: str, script: str) -> None:
        real = shutil.which(name, path=path)
        (folder / name).write_text(f"#!/bin/bash\nREAL={real}\n{script}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{path}")

    return put


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("launcher.partition=lwo", "invalid partition specified: lwo"),
        ("launcher.mem=64G", "Requested node configuration is not available"),
        ("launcher.cpus=640", "not available"),
        ("launcher.slurm.qso=high", "slurm.qso is no option of sbatch: did you mean qos?"),
        ("launcher.slurm.gres=gpu:1", "Invalid generic resource"),
    ],
)
def test_a_refused_job_is_one_line_and_leaves_nothing(
    cluster: Cluster, tmp_path: Path, word: str, complaint: str
) -> None:
    study = Study(tmp_path, cluster)
    code, said = call(*study.arguments(word))
    (error,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert code == 2
    assert complaint in error
    assert not study.results.exists()


def test_an_array_refused_halfway_keeps_the_first(cluster: Cluster, tmp_path: Path, programs: Any) -> None:
    """SLURM takes one array and refuses the next; called again, only the rest is submitted."""
    study = Study(tmp_path, cluster, text=SWEEP.replace("[0]", str(list(range(19)))), words=(HELD, "launcher.pack=1"))
    programs(
        "sbatch",
        'case "$1" in *submission*) ((n=$(cat "$0.n" 2>/dev/null)+1)); echo $n > "$0.n";'
        ' [ $n = 2 ] && { echo "sbatch: error: Batch job submission failed: Slurm is in a bad mood" >&2; exit 1; };;'
        ' esac; exec "$REAL" "$@"',
    )
    code, said = call(*study.arguments())
    (record,) = open_records(study.results / "sweep")
    assert code == 2
    assert f"Slurm is in a bad mood; submitted before that: {record.job}" in said
    again = study.sweep()
    assert "3 runs submitted" in again
    assert "16 runs are queued or running already" in again
    assert sorted(run for each in open_records(study.results / "sweep") for task in each.tasks for run in task) == [
        run.identity for run in study.runs
    ]
    assert len(study.jobs()) == 19
    cancel(study)


def test_a_submitter_killed_midway_loses_no_job(
    cluster: Cluster, tmp_path: Path, programs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies between SLURM's answer and its own note of it: the next call finds the job, which still works."""
    study = Study(tmp_path, cluster, pause="0", words=("launcher.slurm.nodelist=n2",))
    programs("sbatch", 'case "$1" in *submission*) "$REAL" "$@"; kill -9 $PPID;; *) exec "$REAL" "$@";; esac')
    died = command("study.sweep", *study.arguments(), PATH=os.environ["PATH"])
    assert died.returncode == -9
    (record,) = open_records(study.results / "sweep")
    assert record.job == ""
    monkeypatch.setattr(slurm_known, "IN_FLIGHT", 1.0)
    assert "1 runs are queued or running already" in study.sweep()
    (found,) = open_records(study.results / "sweep")
    assert found.job == study.job.array
    study.finish()
    assert study.state().attempts == 1


def test_a_silent_squeue_leaves_the_files_to_speak(
    cluster: Cluster, tmp_path: Path, programs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(tmp_path, cluster, words=("launcher.slurm.nodelist=n2",))
    study.submit()
    programs("squeue", "exec sleep 600")
    programs("sacct", "exit 1")
    monkeypatch.setattr(slurm_cluster, "PATIENCE", 1.0)
    assert "running" in study.status()
    assert "1 runs are queued or running already" in study.sweep()
    monkeypatch.undo()
    study.finish()
    assert "1 done" in study.status()


@pytest.mark.scenario("unshared")
def test_a_folder_that_a_node_does_not_share(begun: Begun) -> None:
    other, absent = begun("unshared")
    assert "found no record of itself on n6: is " in other
    assert "could not be started on n7: is " in absent
    assert other.count("shared with that node?") == absent.count("shared with that node?") == 1


@pytest.mark.scenario("edited")
def test_edits_after_submission_change_nothing(begun: Begun) -> None:
    before, after, commits = begun("edited")
    assert before == after
    assert commits == {"0" * 40}


@pytest.mark.scenario("accounts")
def test_accounts_and_their_limits(begun: Begun) -> None:
    """The bound of what is asked for counts, and a queue that is full refuses nothing that is in it already."""
    skip_if(missing(ACCOUNTING))
    said = begun("accounts")
    assert [code for code, _ in said] == [2, 0, 0, 0, 0]
    assert "Invalid account" in said[0][1]
    for (_, told), expected in zip(
        said[1:],
        (
            ("4 runs submitted", "2 runs found no room among 4 jobs"),
            ("4 runs are queued or running already", "2 runs found no room among 4 jobs"),
            ("1 runs submitted", "1 runs found no room among 1 jobs"),
            ("1 runs submitted", "5 runs are queued or running already"),
        ),
        strict=True,
    ):
        assert [line for line in expected if line not in told] == [], told
        assert ("submitted" in told) == ("submitted" in expected[0])


def cancel(study: Study) -> None:
    done = command("study.cancel", "sweep", "--results", str(study.results))
    assert done.returncode == 0, done.stderr
    assert "scancel" in done.stdout
