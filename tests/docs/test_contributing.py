"""What CONTRIBUTING.md, the change log, the citation and the hooks promise."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import yaml

from tests.docs.pages import ROOT, commands, words_of

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))


def test_hooks_are_what_make_check_does_by_the_same_tools() -> None:
    done = subprocess.run(["make", "--dry-run", "check"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    checks = {line.removesuffix(" .") for line in done.splitlines() if re.match(r"\.venv/bin/(ruff|mypy)", line)}
    hooks = [hook for repository in HOOKS["repos"] for hook in repository["hooks"]]
    assert {hook["entry"].replace(" --force-exclude", "") for hook in hooks} == checks
    assert len(checks) == 3


def test_the_versions_are_those_of_the_constraints() -> None:
    """The tools come from .venv, which `make` fills under constraints.txt; no hook brings another of its own."""
    pinned = dict(re.findall(r"^(ruff|mypy)==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    assert set(pinned) == {"ruff", "mypy"}
    assert [repository["repo"] for repository in HOOKS["repos"]] == ["local"]
    assert all(each in "".join(PROJECT["optional-dependencies"]["dev"]) for each in pinned)


def test_commands_of_contributing_exist() -> None:
    made = {words_of(line)[1] for line in commands(ROOT / "CONTRIBUTING.md") if line.startswith("make ")}
    phony = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[0].split()
    assert made == {"check", "test", "coverage"} <= set(phony)
    assert (ROOT / ".ci" / "run").exists()


def test_the_change_log_keeps_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## (.*)$", text, re.M)
    assert heads[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", head) for head in heads[1:])
    parts = re.findall(r"^### (.*)$", text, re.M)
    assert set(parts) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_citation_names_this_version_and_the_papers() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert (cited["version"], cited["license"]) == (PROJECT["version"], PROJECT["license"])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    papers = {reference["url"] for reference in cited["references"]}
    assert set(re.findall(r"https://arxiv\.org/abs/[\d.]+", readme)) <= papers


def test_no_page_speaks_of_a_place_on_somebodys_machine() -> None:
    texts: list[Path] = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    assert [page.name for page in texts if re.search(r"/(home|Users|root)/\w", page.read_text(encoding="utf-8"))] == []
