"""What the harness adds to the work: planning, two hundred tiny runs, and Hydra's own launcher beside it.

    python benchmarks/sweep_overhead.py

Every tiny run trains one image on the smallest backbone and leaves its rows; both launchers do the very same
`study.run.run`. Hydra's basic launcher does them one after another in one process, composing each anew.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TINY = {
    "train.images": 1,
    "train.batch": 1,
    "train.validate_every": 0,
    "train.validate_images": 1,
    "train.validate_bins": 1,
    "backbone.depth": 1,
    "backbone.width": 16,
    "backbone.P": 4,
    "machine.threads": 1,
}
SWEEP = """\
defaults: [backbone: dit-tiny, data: digits8, train: quick, sample: none]
overrides: {overrides}
axes:
{axes}
launcher: {{name: local, workers: 2}}
"""
MANY, FEW = 200, 20


def sweep_file(folder: Path, axes: dict[str, list[object]], name: str) -> Path:
    overrides = "{" + ", ".join(f"{key}: {value}" for key, value in TINY.items() if key not in axes) + "}"
    lines = "\n".join(f"  {key}: {values}" for key, values in axes.items())
    file = folder / f"{name}.yaml"
    file.write_text(SWEEP.format(overrides=overrides, axes=lines), encoding="utf-8")
    return file


def seconds(command: list[str]) -> float:
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - begun


def plan_a_thousand(folder: Path) -> float:
    from study.estimate import estimate
    from study.plan import make_plan, standing
    from study.plan_table import totals
    from study.sweep_file import read_sweep
    from study.throughput import recorded_speed

    axes = {
        "backbone.depth": [1, 2, 3, 4, 5],
        "backbone.width": [16, 32, 48, 64],
        "train.lr": [1e-3, 2e-3, 3e-3, 4e-3, 5e-3],
        "seed": list(range(10)),
    }
    file = sweep_file(folder, axes, "thousand")
    begun = time.perf_counter()
    plan = make_plan(read_sweep(file))
    speed = recorded_speed(plan.results)
    costs = {point.run: estimate(point.config, speed) for point in plan.points}
    totals(plan, costs, {point.run: standing(point)[0] for point in plan.points}, speed)
    assert len(plan.points) == 1000
    return time.perf_counter() - begun


def sweep(folder: Path, count: int) -> float:
    file = sweep_file(folder, {"seed": list(range(count))}, f"runs{count}")
    results = folder / f"results{count}"
    return seconds([sys.executable, "-W", "ignore", "-m", "study.sweep", str(file), f"results={results}"])


def work_of_one_run(folder: Path) -> float:
    """Seconds of a tiny run in a process that has done one before."""
    from study.plan import make_plan
    from study.run import run
    from study.sweep_file import read_sweep

    logging.getLogger("study").setLevel(logging.INFO)
    file = sweep_file(folder, {"seed": list(range(FEW))}, "work")
    configs = [point.config for point in make_plan(read_sweep(file, [f"results={folder / 'work'}"])).points]
    run(configs[0])
    begun = time.perf_counter()
    for config in configs[1:]:
        run(config)
    return (time.perf_counter() - begun) / (len(configs) - 1)


def hydra_multirun(folder: Path) -> float:
    words = [f"{key}={value}" for key, value in TINY.items()]
    command = [
        sys.executable,
        "-W",
        "ignore",
        __file__,
        "--as-hydra-app",
        "--multirun",
        "backbone=dit-tiny",
        "sample=none",
    ]
    command += [*words, f"results={folder / 'hydra'}", f"hydra.sweep.dir={folder / 'multirun'}"]
    return seconds([*command, f"seed={','.join(map(str, range(FEW)))}"])


def hydra_app() -> None:
    import hydra
    from omegaconf import DictConfig, OmegaConf

    from study.compose import compose_tree
    from study.config import from_dict
    from study.run import run

    compose_tree([])  # registers the presets

    @hydra.main(version_base="1.3", config_path=None, config_name="run")
    def task(config: DictConfig) -> None:
        run(from_dict(OmegaConf.to_container(config, resolve=True)))  # type: ignore[arg-type]

    task()


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        planning, work = plan_a_thousand(folder), work_of_one_run(folder)
        many, few, hydra = sweep(folder, MANY), sweep(folder, FEW), hydra_multirun(folder)
    overhead = (2 * (many - few) / (MANY - FEW)) - work
    print(f"planning 1,000 points                         {planning:6.2f} s")
    print(f"one tiny run, by itself                       {work:6.3f} s")
    print(f"{MANY} tiny runs, 2 workers, start to finish     {many:6.2f} s")
    print(f"  overhead per run and worker                 {overhead:6.3f} s")
    print(f"{FEW} tiny runs, 2 workers, start to finish      {few:6.2f} s")
    print(f"{FEW} tiny runs, hydra --multirun, one process   {hydra:6.2f} s")


if __name__ == "__main__":
    if "--as-hydra-app" in sys.argv:
        sys.argv.remove("--as-hydra-app")
        hydra_app()
    else:
        main()
