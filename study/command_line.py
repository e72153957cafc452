"""What all commands have in common: how they ask, how they end, and that nobody is shown a traceback."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from study.strict import ConfigError, nearest

FAILED, BAD_INPUT, STOPPED, UNREAD = 1, 2, 128 + signal.SIGINT, 128 + signal.SIGPIPE

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # no fault of what was asked

WORDS = "key=value"  # what stands for words that set a field

CODES = (
    "Exit codes: 0 done, 1 something failed, 2 bad input, 128 + n stopped by signal n (130: Ctrl-C).\n"
    "Colours are for terminals only, and off with NO_COLOR set."
)


class Parser(argparse.ArgumentParser):
    """Argparse's, but a wrong word gets one line, with the option that was meant."""

    def __init__(self, **given: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **given)

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message and unknown.startswith("-"):
            message = f"unknown option {unknown}{_meant(unknown, self)}"
        self.exit(BAD_INPUT, f"error: {message} ({self.prog} --help has all)\n")


def _meant(unknown: str, parser: argparse.ArgumentParser) -> str:
    key, _, value = unknown.removeprefix("--").replace(" ", "=", 1).partition("=")
    if any(action.metavar == WORDS for action in parser._actions) and (key == "results" or "." in key):
        return f": did you mean {key}={value or '...'}?"
    hint = nearest(unknown.split()[0].split("=")[0], [name for name in options_of(parser) if name.startswith("--")])
    return hint if "did you mean" in hint else ""


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    """Every spelling of every option, without those of its verbs."""
    return [name for action in parser._actions for name in action.option_strings]


def verbs_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Its subcommands by name."""
    found = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0]) if found else {}


def command_parser(command: str, description: str) -> Parser:
    """Of `python -m study.<command>`; the description ends with an example or has one in it."""
    return Parser(prog=f"python -m study.{command}", description=description, epilog=CODES)


def add_results(parser: argparse.ArgumentParser, default: Path | str = Path("results")) -> None:
    """A verb, which may be told as well as its command, leaves the default to that: argparse.SUPPRESS."""
    parser.add_argument("--results", type=Path, default=default, metavar="DIR", help="the store (results)")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")


def finish(work: Callable[[], int], errors: tuple[type[Exception], ...] = (ConfigError,)) -> int:
    """The exit code of `work`; what a user can do something about is one line, what stops it is none.

    `errors` are what `work` refuses bad input with; a file that cannot be read or written is one as well, unless the
    disk is to blame.
    """
    refusals: tuple[type[Exception], ...] = (*errors, OSError)
    try:
        with _hearing():
            code = work()
            if sys.stdout is not None:  # as it is for a daemon that closed it
                sys.stdout.flush()
            return code
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    except refusals as error:
        complain(error)
        return FAILED if isinstance(error, OSError) and error.errno in DISK else BAD_INPUT
    except KeyboardInterrupt:
        return STOPPED


def complain(error: Exception) -> None:
    """On standard error; a line for each thing that is wrong, if there are several, and indented what belongs to it."""
    for line in _told(error).splitlines():
        print(line if line.startswith(" ") else f"error: {line}", file=sys.stderr)


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def end_quietly_on_interrupt() -> None:
    """Ctrl-C while modules are being imported, before a command can hear it, ends the process without a word.

    An exception might be printed, or swallowed, wherever it came; and nothing was begun that it had to undo.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nobody told us to ignore it
        signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(STOPPED)


@contextmanager
def _hearing() -> Iterator[None]:
    """Within, Ctrl-C is the exception that commands know how to end by."""
    quietly = signal.getsignal(signal.SIGINT) is _leave
    if quietly:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if quietly:
            signal.signal(signal.SIGINT, _leave)
