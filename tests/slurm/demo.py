"""A SLURM of one's own to try a sweep on: `make slurm-demo`, as root, with Debian's packages installed.

Two nodes on this machine, gone without a trace when the demonstration ends.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.slurm.cluster import Cluster, missing

PACKAGES = "slurmctld slurmd slurm-client munge"
SWEEP = "sweeps/ablate_M.yaml"
SMALL = ("train.images=640", "sample.count=16")


def main() -> int:
    if reason := missing():
        print(f"error: {reason}; as root: apt-get install -y --no-install-recommends {PACKAGES}", file=sys.stderr)
        return 2
    with TemporaryDirectory(prefix="slurm-demo-") as folder:
        cluster = Cluster(Path(folder), nodes=2, cpus=2)
        cluster.start()
        try:
            show(cluster, Path(folder) / "results")
        except KeyboardInterrupt:
            return 130
        finally:
            print("taking the cluster down")
            cluster.stop()
    return 0


def show(cluster: Cluster, results: Path) -> None:
    """A small sweep; then, if somebody is at the keyboard, the cluster stays until they have seen enough."""
    print(f"a SLURM of two nodes is up; in another shell:\n  export SLURM_CONF={cluster.conf}\n  sinfo; squeue")
    sweep = ["study.sweep", SWEEP, "launcher=slurm", f"results={results}", *SMALL]
    run(cluster, "sinfo")
    run(cluster, sys.executable, "-m", *sweep)
    run(cluster, "squeue")
    run(cluster, sys.executable, "-m", "study.status", "ablate_M", "--results", str(results))
    run(cluster, sys.executable, "-m", *sweep, "--wait")
    if sys.stdin.isatty():
        input("Enter takes the cluster down, and its results with it ")


def run(cluster: Cluster, *words: str) -> None:
    shown = " ".join(["python" if word == sys.executable else word for word in words])
    print(f"\n$ {shown}", flush=True)
    subprocess.run(words, env=cluster.environment, check=True)


if __name__ == "__main__":
    sys.exit(main())
