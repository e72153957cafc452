"""What the tests of the pages share: their blocks, their links, and a copy of the tree in which to do what they say."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("models", "study", "analysis", "sweeps", "tests", "pyproject.toml", "Makefile", "constraints.txt")


PROGRAM = re.compile(r"(python3?|\.venv/bin/[\w-]+|make|jupyter|git|pip|torchrun|apt-get|pre-commit) ")


def pages() -> list[Path]:
    """Every page for people that git keeps, but for those that a command writes."""
    top = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return [*top, *sorted(ROOT.glob("docs/**/*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a language, in the order of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.S | re.M)


def block(page: Path, language: str, holding: str) -> str:
    """The one block in which the words stand."""
    (found,) = (text for text in blocks(page, language) if holding in text)
    return found


def indented(page: Path) -> list[str]:
    """Blocks indented by four after an empty line, outside fences, without the indentation."""
    found: list[list[str]] = [[]]
    fenced, open_block = False, False
    for above, line in pairwise(["", *page.read_text(encoding="utf-8").splitlines()]):
        fenced ^= line.startswith("```")
        open_block = not fenced and line.startswith("    ") and (open_block or not above.strip())
        if open_block:
            found[-1].append(line[4:])
        elif found[-1]:
            found.append([])
    return ["\n".join(lines) for lines in found if lines]


def commands(page: Path) -> list[str]:
    """Every line of a shell in the page's indented blocks; continued lines are joined."""
    joined = "\n".join(indented(page)).replace("\\\n", " ")
    return [line for line in joined.splitlines() if PROGRAM.match(line)]


def words_of(command: str) -> list[str]:
    """Without the comment behind it."""
    return shlex.split(command, comments=True)


def copy_tree(folder: Path) -> Path:
    """The code, its sweeps and tests, as a clone would have them: what pages say is done there and never here."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.ipynb", "parity", "slurm"))
        else:
            shutil.copy(source, target)
    return folder


@dataclass(frozen=True)
class Done:
    """What a command said, on both streams, and how it ended."""

    command: str
    status: int
    said: str

    def __str__(self) -> str:
        return f"{self.command}\n{self.said}\n-> {self.status}"


def run_in(tree: Path, given: Sequence[str], home: Path) -> Iterator[Done]:
    """Run `python -m ...` lines one after another in the tree, by one process that imports torch once for all."""
    environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home), "COLUMNS": "120", "NO_COLOR": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.docs.console"]
    asked = json.dumps([words_of(line) for line in given])
    done = subprocess.run(
        command, cwd=tree, env=environment, input=asked, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    for line, end in zip(given, json.loads(done.stdout), strict=True):
        yield Done(line, end["status"], end["said"])
