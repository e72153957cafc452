"""What is recorded about where a result came from."""

from __future__ import annotations

from pathlib import Path

import study
from study.provenance import command

HERE = Path(study.__file__).parent


def test_command_is_what_was_typed_wherever_the_code_lies() -> None:
    assert command([str(HERE / "sweep.py"), "s.yaml", "seed=1"]) == "python -m study.sweep s.yaml seed=1"
    assert command(["/somewhere/bin/pytest", "-q"]) == "pytest -q"
