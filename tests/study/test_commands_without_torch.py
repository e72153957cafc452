"""Commands that look at files answer at once: nothing heavy is imported on their way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from study.sweep import main
from tests.study import fake_runs
from tests.study.sweeping import SWEEP, sweep_file

HEAVY = ("torch", "pandas", "scipy", "hydra", "matplotlib", "sklearn")
CODE = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__")
except SystemExit as end:
    code = end.code
print("imported:", sorted(set({heavy!r}) & set(sys.modules)), code, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    text = SWEEP.replace("[0.001, 0.002]", "[0.001]").replace("[0, 1, 2, 3, 4, 5]", "[0]")
    assert main([str(sweep_file(folder, text)), f"results={folder}", "launcher=inline"], fake_runs.quick) == 0
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ("study.sweep", "--help"),
        ("study.status", "--help"),
        ("study.logs", "--help"),
        ("study.results", "--help"),
        ("study.status", "--results", "STORE"),
        ("study.status", "lrs", "--results", "STORE"),
        ("study.status", "RUN", "--results", "STORE"),
        ("study.logs", "RUN", "--results", "STORE"),
        ("study.results", "--results", "STORE", "prune"),
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(words: tuple[str, ...], results: Path) -> None:
    (run,) = (path.name for path in (results / "runs").iterdir())
    words = tuple({"STORE": str(results), "RUN": run}.get(word, word) for word in words)
    command = [sys.executable, "-c", CODE.format(heavy=HEAVY), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == "imported: [] 0\n"
    assert done.stdout
