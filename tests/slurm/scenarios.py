"""What is done to runs on the cluster. Each scenario keeps to nodes of its own and returns what it saw."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from study.launch.slurm_record import open_records
from study.results import read_rows
from study.rows import SPEED_PROTOCOL
from tests.slurm.cluster import Cluster
from tests.slurm.disturbed import PATIENCE, ROOT, Study, command, left_by, start, undisturbed, until
from tests.slurm.search_scenario import searched as searched

ELSEWHERE = 'launcher.slurm.exclude="n[1-11]"'  # where nodes and jobs are disturbed

ORDER = (
    "two_minutes",
    "accounts",
    "searched",
    "many",
    "two_nodes",
    "warned_together",
    "edited",
    "node_lost",
    "preempted",
    "requeued",
    "cancelled_task",
    "cancelled_sweep",
    "killed",
    "unshared",
    "headline",
)
"""The longest first."""

LAST = ("controller",)
"""Those that would disturb the others."""


def two_minutes(folder: Path, cluster: Cluster) -> Study:
    """A run that needs three jobs of two minutes each."""
    study = Study(folder, cluster, pause="1.1:1.1:0.1", words=("launcher.time=2", "launcher.slurm.nodelist=n10"))
    study.submit()
    until(lambda: study.status() and study.state().status == "done", "done after two time limits")
    return study


def preempted(folder: Path, cluster: Cluster) -> Study:
    study = Study(folder, cluster, words=("launcher.slurm.nodelist=n1",))
    study.submit()
    cluster.ask("sbatch", "-p", "high", "-w", "n1", "--exclusive", "-o", "/dev/null", "--wrap=sleep 3")
    study.until_status("queued", "preempted: ")
    study.finish()
    return study


def requeued(folder: Path, cluster: Cluster) -> Study:
    study = Study(folder, cluster, words=("launcher.slurm.nodelist=n2",))
    study.submit()
    cluster.ask("scontrol", "requeue", study.job.number)
    study.until_status("queued", "waits: ", "restarted 1 times", "preempted: put back into the queue")
    study.finish()
    return study


def cancelled_task(folder: Path, cluster: Cluster) -> Study:
    study = Study(folder, cluster, words=("launcher.slurm.nodelist=n2",))
    study.submit()
    cluster.ask("scancel", study.job.number)
    study.until_status("to continue", "stopped: its job was cancelled")
    study.sweep()
    study.finish()
    return study


def cancelled_sweep(folder: Path, cluster: Cluster) -> tuple[Study, str]:
    """By our own command; of two runs one is at work and one still queued."""
    text = Study.__dataclass_fields__["text"].default.replace("[0]", "[0, 1]")
    study = Study(folder, cluster, text=text, words=("launcher.slurm.nodelist=n2", "launcher.parallel=1"))
    study.sweep()
    until(lambda: any(run.read_state().images for run in study.runs), "one at work")
    done = command("study.cancel", "sweep", "--results", str(study.results))
    assert done.returncode == 0, done.stderr
    until(lambda: not any(job.is_open for job in study.jobs()), "all jobs gone")
    said = study.status()
    study.sweep()
    study.finish()
    return study, said


def killed(folder: Path, cluster: Cluster) -> tuple[Study, int, str]:
    """Python gets SIGKILL, so that it is SLURM who has to say what happened; a follower sends the run again."""
    study = Study(folder, cluster, words=("launcher.slurm.nodelist=n3",))
    follower = start("study.sweep", *study.arguments("--wait"))
    until(lambda: study.file.with_name("results").exists() and study.runs, "submitted")
    study.reach(1)
    os.kill(study.state().pid, signal.SIGKILL)
    study.until_status("killed: ")
    out, err = follower.communicate(timeout=PATIENCE)
    return study, follower.returncode, out + err


def node_lost(folder: Path, cluster: Cluster) -> tuple[Study, int, int]:
    """The node's daemon dies and its job is given to another node, while the old process lives on."""
    study = Study(folder, cluster, pause="1.5:0.1", words=("launcher.slurm.constraint=lossy",))
    study.submit()
    old = study.state().pid
    node = study.job.nodes
    cluster.end(f"slurmd.{node}", signal.SIGKILL)
    study.until_status("restarted 1 times", "node lost: ")
    zombie_lived = int(Path(f"/proc/{old}").exists())
    study.finish()
    until(lambda: not Path(f"/proc/{old}").exists(), "the zombie gone")
    cluster.start_node(int(node.removeprefix("n")))
    return study, old, zombie_lived


def controller(folder: Path, cluster: Cluster) -> Study:
    """SLURM's controller restarts while a job runs; meanwhile nobody answers."""
    study = Study(folder, cluster, pause="0.5", words=("launcher.slurm.nodelist=n3",))  # it outlives SLURM's silence
    study.submit()
    cluster.end("slurmctld")
    study.seen.clear()
    try:
        study.until_status("running")
    finally:
        cluster.start_controller()
    until(lambda: study.jobs(), "an answer")
    study.finish()
    cluster.wait_until_ready()
    return study


def headline(folder: Path, cluster: Cluster) -> dict[str, object]:
    """The study of M, locally and on the cluster; called again while its jobs are queued, and when all is done."""
    file = str(ROOT / "sweeps" / "ablate_M.yaml")
    small = ("train.images=128", "sample.count=8", "train.validate_images=16")
    there, here = folder / "there", folder / "here"
    on_cluster = (file, f"results={there}", "launcher=slurm", "launcher.slurm.hold=true", ELSEWHERE, *small)
    first = command("study.sweep", *on_cluster)
    assert first.returncode == 0, first.stderr
    second = command("study.sweep", *on_cluster)
    follower = start("study.sweep", *on_cluster, "--wait")
    jobs = sorted((there / "ablate_M" / "slurm" / "logs").glob("*_submission.sh"))
    local = command("study.sweep", file, f"results={here}", "launcher=inline", *small)
    assert local.returncode == 0, local.stderr
    for record in open_records(there / "ablate_M"):
        cluster.ask("scontrol", "release", record.job)
    out, err = follower.communicate(timeout=PATIENCE)
    last = command("study.sweep", *on_cluster)
    return {
        "first": first.stdout,
        "second": second.stdout,
        "jobs": len(jobs),
        "followed": (follower.returncode, out + err),
        "last": last.stdout,
        "jobs at last": len(list((there / "ablate_M" / "slurm" / "logs").glob("*_submission.sh"))),
        "there": rows_of(there),
        "here": rows_of(here),
    }


def rows_of(results: Path) -> dict[str, list[tuple[object, ...]]]:
    """All numbers of a store but those of speed."""
    return {
        path.parent.name: [
            (row.metric, row.value, row.n, row.interval, row.protocol)
            for row in read_rows(path)
            if row.protocol != SPEED_PROTOCOL
        ]
        for path in sorted(results.glob("runs/*/rows.jsonl"))
    }


def many(folder: Path, cluster: Cluster) -> tuple[Study, str]:
    """500 points in packs, on four slots, in more tasks than one array may have on this cluster of their own."""
    text = """\
defaults: [backbone: dit-tiny, data: digits8, train: quick, sample: none]
overrides:
  train.batch: 4
  train.images: 4
  train.validate_images: 1
  train.validate_bins: 1
  train.ema: [0.9]
axes: {seed: SEEDS}
""".replace("SEEDS", str(list(range(500))))
    with own_cluster(max_array=6) as own:
        study = Study(folder, own, pause="0", text=text, words=("launcher.pack=63", "launcher.parallel=2"))
        done = command("study.sweep", *study.arguments(), SLURM_CONF=str(own.conf))
        assert done.returncode == 0, done.stderr
        study.finish()
    return study, done.stdout


def accounts(folder: Path, cluster: Cluster) -> list[tuple[int, str]]:
    """On a cluster of its own, with accounts and limits: six runs, sent again and again by other ones."""
    with own_cluster(accounting=True) as own:
        return _asked_of(own, folder)


@contextmanager
def own_cluster(**options: Any) -> Iterator[Cluster]:
    """Of one node, beside the one that is everybody's."""
    with TemporaryDirectory(prefix="slurm-") as place:
        own = Cluster(Path(place), nodes=1, **options)
        own.start()
        try:
            yield own
        finally:
            own.stop()


def _asked_of(own: Cluster, folder: Path) -> list[tuple[int, str]]:
    for words in (
        ("add", "account", "lab", "other"),
        ("add", "qos", "tight", "set", "maxsubmitjobsperuser=1"),
        ("add", "user", "root", "account=lab", "maxsubmitjobs=4"),
        ("add", "user", "root", "account=other"),
        ("modify", "user", "root", "set", "qos+=tight"),
    ):
        own.ask("sacctmgr", "-i", *words)
    text = Study.__dataclass_fields__["text"].default.replace("[0]", "[0, 1, 2, 3, 4, 5]")
    study = Study(folder, own, pause="0", text=text, words=("launcher.pack=1", "train.images=20"))
    said = []
    for words in (
        ("account=labb",),
        ("account=lab",),
        ("account=lab",),
        ("account=other", "qos=tight"),
        ("account=other",),
    ):
        asked = study.arguments("launcher.slurm.hold=true", *(f"launcher.slurm.{word}" for word in words))
        done = command("study.sweep", *asked, SLURM_CONF=str(own.conf))
        said.append((done.returncode, done.stdout + done.stderr))
        assert done.returncode != 2 or not study.results.exists()
    for number in set(own.ask("squeue", "-h", "-o", "%A").split()):
        own.ask("scontrol", "release", number)
    study.finish()
    return said


def unshared(folder: Path, cluster: Cluster) -> tuple[str, str]:
    """Two nodes that see another folder under the name of the store: one with something in it, one empty."""
    seen = []
    for node, inside in ((6, "sweep/slurm/logs"), (7, "")):
        study = Study(folder / f"n{node}", cluster, words=(f"launcher.slurm.nodelist=n{node}",))
        study.results.mkdir()
        cluster.end(f"slurmd.n{node}")
        hide = f'mount -t tmpfs none "{study.results}" && mkdir -p "{study.results}/{inside}" && exec "$@"'
        cluster.start_node(node, before=("unshare", "--mount", "sh", "-c", hide, "sh"))
        study.sweep()
        until(lambda study=study: study.jobs() and not study.job.is_open, "the job over")  # type: ignore[misc]
        seen.append(study.status())
    return seen[0], seen[1]


def edited(folder: Path, cluster: Cluster) -> tuple[dict[str, object], dict[str, object], set[str]]:
    """Submitted from a copy of the code which is broken, as are the sweep file and git, before the job begins."""
    tree = folder / "tree"
    for package in ("models", "study"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "snapshot.json").write_text(json.dumps({"commit": "0" * 40, "dirty": "false"}), encoding="utf-8")
    study = Study(folder / "study", cluster, words=("launcher.slurm.begin=now+40", ELSEWHERE))
    done = command("study.sweep", *study.arguments(), PYTHONPATH=str(tree), PYTHONSAFEPATH="1")
    assert done.returncode == 0, done.stderr
    (tree / "study" / "train.py").write_text("raise SystemExit('edited')", encoding="utf-8")
    (tree / "snapshot.json").unlink()
    study.file.write_text("nothing", encoding="utf-8")
    study.finish()
    commits = {attempt["commit"] for attempt in json.loads(study.run.provenance.read_text(encoding="utf-8"))}
    return left_by(study.run), left_by(undisturbed(folder / "alone")), commits


def two_nodes(folder: Path, cluster: Cluster) -> tuple[Study, Study]:
    """One run by two processes on two nodes, undisturbed; and one that loses a process on the way."""
    words = ("launcher.nodes=2", "launcher.slurm.constraint=pair")
    whole = Study(folder / "whole", cluster, pause="0", words=words)
    whole.sweep()
    lossy = Study(folder / "lossy", cluster, words=words)
    lossy.submit()
    second = next(pid for pid in cluster.job_processes(lossy.job.number) if is_rank(pid, 1))
    os.kill(second, signal.SIGKILL)
    lossy.until_status("to continue", "node lost: ")
    until(lambda: not lossy.job.is_open, "the job over")
    assert lossy.job.state == "FAILED"
    lossy.sweep()
    lossy.finish()
    whole.finish()
    return whole, lossy


def warned_together(folder: Path, cluster: Cluster) -> Study:
    """One run by two processes, to both of which SLURM passes a warning."""
    words = ("launcher.nodes=2", "launcher.slurm.constraint=pair")
    study = Study(folder, cluster, pause="1", words=words)  # on a busy machine the warning may take its time
    study.submit()
    cluster.ask("scancel", "--signal=USR2", study.job.number)
    study.until_status("queued", "restarted 1 times", "preempted: SIGUSR2")
    study.gate.touch()
    study.finish()
    return study


def is_rank(pid: int, rank: int) -> bool:
    """Whether this is the Python process of a rank."""
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return f"SLURM_PROCID={rank}".encode() in words and b"submitit" in Path(f"/proc/{pid}/cmdline").read_bytes()
