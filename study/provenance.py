"""Where a result came from: code, environment, hardware, settings."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "numpy", "hydra-core", "safetensors", "scikit-learn", "matplotlib", "pillow")

SNAPSHOT = "snapshot.json"
"""Beside a copy of the packages: `git_state` of what was copied."""


def provenance(device: torch.device, **settings: str) -> dict[str, str]:
    """Everything that could explain why the same run gave other numbers elsewhere, as plain strings."""
    packages = {name: _package_version(name) for name in PACKAGES}
    return {
        **git_state(),
        "python": platform.python_version(),
        **packages,
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": str(torch.get_num_threads()),
        "host": platform.node(),
        "command": command(sys.argv),
        **settings,
    }


def command(given: Sequence[str]) -> str:
    """What was typed: of `python -m study.run`, argv keeps only where on this machine the file lies."""
    file = Path(given[0])
    module = f"python -m {file.parent.name}.{file.stem}" if file.parent == Path(__file__).parent else file.name
    return " ".join([module, *given[1:]])


@cache
def git_state() -> dict[str, str]:
    """Commit of the code that runs, and whether it differs from that commit."""
    snapshot = Path(__file__).parents[1] / SNAPSHOT
    if snapshot.exists():
        return json.loads(snapshot.read_text(encoding="utf-8"))
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": "unknown", "dirty": "unknown"}
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": "unknown" if changes is None else str(bool(changes)).lower()}


def _git(*arguments: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            env=environment,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


@cache
def cpu_features() -> frozenset[str]:
    """Instruction-set flags as Linux names them; empty where they cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = (line.split(":", 1)[1] for line in lines if line.lower().startswith(("flags", "features")))
    return frozenset(next(flags, "").split())


@cache
def _package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
