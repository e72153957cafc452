"""A search on the cluster whose workers are killed."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from study.lease import newest
from tests.slurm.cluster import Cluster
from tests.slurm.disturbed import PATIENCE, Study, command, start, until

WORKERS = 16  # at one journal

KILLED = 4  # of them, while all are at work; later, at random moments, as many again

TRIALS = 48

SEARCH = f"""\
defaults: [backbone: dit-tiny, data: digits8, train: quick, sample: none]
overrides:
  train.batch: 4
  train.images: 64
  train.validate_images: 4
  train.validate_bins: 2
  train.ema: [0.99]
  log.every: 4
axes: {{train.lr: "loguniform(1e-4, 1e-1)"}}
search: {{trials: {TRIALS}, sampler: random}}
"""


def searched(folder: Path, cluster: Cluster) -> dict[str, Any]:
    """Many workers at one journal, slow ones first: random ones are killed and one is warned, as is killed who follows
    them; all are cancelled. Sent again and no longer slow, they are killed while they are at the journal together."""
    chance = random.Random(0)
    words = ("launcher.slurm.nodelist=n11", f"launcher.parallel={WORKERS}", "launcher.tries=50")
    study = Study(folder, cluster, pause="7", nice=10, text=SEARCH, words=words)
    follower = start("study.sweep", *study.arguments("--wait"))
    calm = start("study.sweep", str(study.file), f"results={folder / 'calm'}", "launcher=inline")
    seen: dict[str, Any] = {"at work": [all_at_work(study)]}
    follower.kill()
    warned = next(job for job in study.jobs() if job.number == job.array)  # to SLURM's commands that means all tasks
    victims = chance.sample(sorted(pid for job, pid in workers_at(study).items() if job != warned.number), KILLED)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    cluster.ask("scancel", "--signal=USR2", f"{warned.array}_{warned.index}")
    until(lambda: sum(job.state == "FAILED" for job in study.jobs()) == KILLED, "SLURM knows of all")
    again = command("study.sweep", *study.arguments())
    assert again.returncode == 0, again.stderr
    until(lambda: "restarted 1 times" in study.status(), "the warned one is back")
    seen["warned"] = study.status()
    all_at_work(study)
    seen["status"] = study.status()
    cancelled = command("study.cancel", "sweep", "--results", str(study.results))
    assert cancelled.returncode == 0, cancelled.stderr
    until(lambda: not any(job.is_open for job in study.jobs()), "all jobs gone")
    last = start("study.sweep", *study.arguments("--wait"))
    seen["at work"].append(all_at_work(study))
    bystander = start("study.sweep", *study.arguments())
    study.gate.touch()
    struck = [strike(study, chance) for _ in range(KILLED)]
    bystander.kill()
    out, err = last.communicate(timeout=PATIENCE)
    idle = command("study.sweep", *study.arguments())
    _, complaint = calm.communicate(timeout=PATIENCE)
    assert calm.returncode == 0, complaint
    until(lambda: not any(job.is_open for job in study.jobs()), "workers without work gone")
    return {
        **seen,
        "results": study.results,
        "calm": folder / "calm",
        "killed": [follower.wait(), len(victims), sum(struck)],
        "second": again.stdout,
        "cancelled": cancelled.stdout,
        "followed": (last.returncode, out + err),
        "last": (idle.returncode, idle.stdout),
        "attempts": sum(run.read_state().attempts for run in study.runs),
    }


def workers_at(study: Study) -> dict[str, int]:
    """Jobs that are at a run now, and their processes."""
    claims = [newest(path) for path in (study.results / "runs").glob("*")]
    return {claim.holder.job.split(".")[0]: claim.holder.pid for claim in claims if claim is not None and claim.held}


def all_at_work(study: Study) -> tuple[dict[str, int], dict[str, str]]:
    """When every worker is at a run: those workers, and what SLURM says is running then, with its arrays."""

    def seen() -> tuple[dict[str, int], dict[str, str]] | None:
        workers = workers_at(study)
        running = {job.number: job.array for job in study.jobs() if job.state == "RUNNING"}
        return (workers, running) if len(workers) == WORKERS else None

    found = until(seen, f"{WORKERS} workers at their runs")
    assert found
    return found


def strike(study: Study, chance: random.Random) -> bool:
    """Kill a random worker at a random moment; False if none is left that is at a run."""
    time.sleep(chance.uniform(0, 0.5))
    present = sorted(workers_at(study).values())
    if present:
        with suppress(ProcessLookupError):
            os.kill(chance.choice(present), signal.SIGKILL)
    return bool(present)
