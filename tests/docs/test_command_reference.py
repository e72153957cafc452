"""docs/cli.md is what the commands say of themselves, and has all that they take."""

from __future__ import annotations

import pytest

from study.__main__ import COMMANDS
from study.command_line import options_of, verbs_of
from study.options import parser_of
from study.reference import page
from tests.docs.pages import ROOT

TEXT = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def test_it_is_up_to_date() -> None:
    assert page() == TEXT, "run python -m study.reference > docs/cli.md"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_section_has_every_option_of_its_command(command: str) -> None:
    section = TEXT.split(f"\n## {command}\n")[1].split("\n## ")[0]
    parser = parser_of(command)
    for each in (parser, *verbs_of(parser).values()):
        assert all(name in section for name in options_of(each) if name not in ("-h", "--help"))
