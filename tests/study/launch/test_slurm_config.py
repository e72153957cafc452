"""What a user may ask of the cluster launcher, and what is refused before anybody asks SLURM."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.launch.config import SlurmConfig, launcher_from, launcher_tree
from study.launch.slurm_record import Submission
from study.launch.slurm_script import make_executor, sbatch_flags, warning_seconds
from study.strict import ConfigError
from study.sweep import main
from tests.study.sweeping import SWEEP, sweep_file


def config(**given: object) -> SlurmConfig:
    found = launcher_from({"name": "slurm", **given})
    assert isinstance(found, SlurmConfig)
    return found


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"time": 1}, "launcher.time=1 is not valid: must be 2 or more"),
        ({"cpus": 0}, "launcher.cpus=0 is not valid"),
        ({"mem": "4 GB"}, "launcher.mem='4 GB' is not valid"),
        ({"tim": 30}, "unknown key launcher.tim: did you mean launcher.time?"),
        (
            {"gpus_per_node": 2, "tasks_per_node": 4},
            "launcher.tasks_per_node=4 is not valid: there are 2 gpus_per_node",
        ),
        ({"nodes": 2, "pack": 8}, "launcher.pack=8 is not valid: a run of 2 processes has a job of its own"),
        ({"slurm": {"time": 30}}, "slurm.time is not valid: say launcher.time"),
        ({"slurm": {"cpus_per_task": 2}}, "slurm.cpus_per_task is not valid: say launcher.cpus"),
        ({"slurm": {"array": "0-3"}}, "slurm.array is not valid: the launcher sets that itself"),
        ({"slurm": {"clusters": "a,b"}}, "slurm.clusters is not valid: the launcher sets that itself"),
        ({"slurm": {"setup": "x"}}, "slurm.setup is not valid: say launcher.setup"),
        ({"slurm": {"qos": ["a"]}}, "slurm.qos=['a'] is not valid"),
        ({"slurm": "account"}, "slurm='account' is not valid"),
    ],
)
def test_contradictions_are_one_line(given: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config(**given)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_tree_gives_the_config_back() -> None:
    given = config(partition="gpu", slurm={"account": "lab", "exclusive": True}, setup=["module load python"])
    assert launcher_from(launcher_tree(given)) == given


def test_options_of_sbatch_are_merged_from_file_and_command_line() -> None:
    merged = config(**{"slurm": {"account": "lab"}, "slurm.qos": "high"})
    assert merged.slurm == {"account": "lab", "qos": "high"}


def test_processes_are_one_per_gpu_or_as_many_as_said() -> None:
    assert config().processes == 1
    assert config(nodes=2, gpus_per_node=4).processes == 8
    assert config(nodes=2, tasks_per_node=3).processes == 6


def test_the_script_says_what_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = config(
        partition="gpu",
        time=90,
        cpus=4,
        mem="16G",
        nodes=2,
        gpus_per_node=8,
        parallel=3,
        python="apptainer exec study.sif python",
        setup=["module load cuda"],
        srun=["--mpi=none"],
        slurm={"account": "lab", "exclusive": True, "mail-type": "FAIL"},
    )
    srun = tmp_path / "srun"  # submitit looks for one
    srun.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    record = Submission(
        str(tmp_path / "r/s/slurm"), "abcd", "", (("run",),) * 4, 0.0, "c", "me", 90, 90, 16, "/code here"
    )
    executor = make_executor(asked, record)
    executor.parameters["map_count"] = 4
    text = executor._make_submission_file_text(executor._submitit_command_str, "uid")
    for line in (
        "#SBATCH --partition=gpu",
        "#SBATCH --time=90",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --mem=16G",
        "#SBATCH --nodes=2",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --array=0-3%3",
        "#SBATCH --account=lab",
        "#SBATCH --exclusive",
        "#SBATCH --mail-type=FAIL",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@90",
        "#SBATCH --job-name=s.abcd",
        "module load cuda",
        "export SLURM_EXPORT_ENV=ALL",
        "export OMP_NUM_THREADS=4 MKL_NUM_THREADS=4 OPENBLAS_NUM_THREADS=4",
    ):
        assert line in text.splitlines()
    assert "export PYTHONPATH='/code here'" in text
    assert "--mpi=none apptainer exec study.sif python -u -m submitit.core._submit" in text


def test_a_wish_against_requeueing_is_heard() -> None:
    assert "no-requeue" in sbatch_flags(config(slurm={"no_requeue": True}))


@pytest.mark.parametrize(("minutes", "seconds"), [(2, 20), (5, 50), (9, 90), (600, 90)])
def test_the_warning_leaves_most_of_a_short_job(minutes: int, seconds: int) -> None:
    assert warning_seconds(minutes) == seconds


def test_without_slurm_the_local_launcher_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    file = sweep_file(tmp_path, SWEEP.replace("{name: local, workers: 2, tries: 50}", "slurm"))
    assert main([str(file), f"results={tmp_path / 'results'}"]) == 2
    said = capsys.readouterr().err
    assert said == "error: launcher=slurm: there is no sbatch on this machine; launcher=local runs here\n"
    assert not (tmp_path / "results").exists()


def test_words_about_ends_need_somebody_who_follows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sweep_file(tmp_path)), f"results={tmp_path}/r", "launcher=slurm", "--fail-fast"]) == 2
    assert "need --wait" in capsys.readouterr().err
