"""docs/cli.md: every command, as its own --help has it.

    python -m study.reference > docs/cli.md

Options are set as tables here and not as argparse sets them, which differs from one Python to the next.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from inspect import cleandoc

from study.__main__ import COMMANDS
from study.command_line import CODES, verbs_of
from study.options import parser_of

HEAD = f"""\
# Command line

Written by `python -m study.reference > docs/cli.md` from what the commands say of themselves; `--help` says the same.
`python -m study sweep FILE`, `python -m study.sweep FILE` and `diffusion-study sweep FILE` are one command.

{CODES.replace(chr(10), " ")}
"""


def page() -> str:
    listed = "\n".join(f"| [`{name}`](#{name}) | {does} |" for name, does in COMMANDS.items())
    parts = [part for command in COMMANDS for part in _command(command)]
    return "\n".join([HEAD, f"| command | does |\n|---|---|\n{listed}\n", *parts]).rstrip() + "\n"


def _command(command: str) -> Iterator[str]:
    parser = parser_of(command)
    yield f"## {command}\n"
    yield from _said(parser)
    for verb, below in {**verbs_of(parser), **_apart(command)}.items():
        yield f"### {command} {verb}\n"
        yield from _said(below)


def _apart(command: str) -> dict[str, argparse.ArgumentParser]:
    """Verbs that are parsed by themselves, as what they need takes long to import."""
    if command == "bench":
        from study.bench.__main__ import COMMANDS as TIMED
        from study.bench.__main__ import other_parser

        return {verb: other_parser(verb) for verb in TIMED}
    if command == "data":
        from study.latents.command import encode_parser

        return {"encode": encode_parser()}
    return {}


def _said(parser: argparse.ArgumentParser) -> Iterator[str]:
    if parser.description:
        yield f"```\n{cleandoc(parser.description)}\n```\n"
    rows = [row for action in parser._actions if (row := _row(action, parser))]
    if rows:
        yield "\n".join(["| | |", "|---|---|", *rows]) + "\n"


def _row(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    if isinstance(action, argparse._HelpAction | argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
        return ""
    told = (action.help or "") % {**vars(action), "prog": parser.prog}
    return f"| `{_spelled(action)}` | {told.replace('|', chr(92) + '|')} |".replace("|  |", "| |")


def _spelled(action: argparse.Action) -> str:
    """As one types it: `--size PX ...`."""
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else None
    shown = action.metavar or choices or (action.dest.upper() if action.option_strings else action.dest)
    value = shown[0] if isinstance(shown, tuple) else shown
    several = " ..." if action.nargs in ("+", "*") else ""
    if not action.option_strings:
        return f"{value}{several}"
    name = ", ".join(action.option_strings)
    return name if action.nargs == 0 else f"{name} {value}{several}"


if __name__ == "__main__":
    print(page(), end="")
