"""All commands under one name: `python -m study sweep FILE` is `python -m study.sweep FILE`."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from study.command_line import BAD_INPUT, finish
from study.strict import nearest

COMMANDS = {
    "sweep": "from one YAML file to a finished study; again: only what is missing",
    "status": "what is going on, and what failed and why",
    "logs": "the log of one run",
    "cancel": "end what a sweep has queued or running; it can be continued",
    "answer": "what a sweep found: its table, what is noise and what is not",
    "report": "a study, or several, as one page to send",
    "run": "one run, start to finish",
    "score": "score samples against a reference",
    "cost": "parameters, MACs and memory on paper, and the published numbers beside",
    "bench": "time, memory and energy on this machine",
    "data": "the data sets: list, show, check, encode as latents",
    "interchange": "official checkpoints in, model folders out, samples of either",
    "results": "look after a store: verify, prune, export, migrate",
    "completion": "print a script that completes commands, options and sweeps in bash or zsh",
}

USAGE = """\
usage: python -m study COMMAND ...        (or: diffusion-study COMMAND ...)

{commands}

python -m study COMMAND --help says what a command takes, with an example; it runs from any directory.
Exit codes: 0 done, 1 something failed, 2 bad input, 128 + n stopped by signal n (130: Ctrl-C)."""


def usage() -> str:
    return USAGE.format(commands="\n".join(f"  {name:12} {does}" for name, does in COMMANDS.items()))


def main(given: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if given is None else given)
    return finish(lambda: _named(words))


def _named(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] not in COMMANDS:
        print(f"error: no command {words[0]}{nearest(words[0], list(COMMANDS))}", file=sys.stderr)
        return BAD_INPUT
    return run_command(words[0], words[1:])


def run_command(command: str, words: Sequence[str]) -> int:
    """What `python -m study.<command>` does; if only its help is asked for, without waiting for torch."""
    sys.argv = [f"study.{command}", *words]
    if words[:1] in (["-h"], ["--help"]):
        from study.options import parser_of

        parser_of(command).print_help()
    else:
        runpy.run_module(f"study.{command}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
