"""Runs `python -m MODULE ...` lines, given as JSON on stdin, each in a fork of a process that has imported libraries.

Half of what a small command takes is importing; nothing of the project itself is imported here, so that each line
sees the tree as the lines before it left it. It prints JSON: how each ended, and what it said.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import sys
import tempfile
import traceback

import hydra.core.config_store
import pandas
import pytest
import scipy.stats
import seaborn
import torch

IMPORTED = (hydra, pandas, pytest, scipy, seaborn, torch)


def main() -> None:
    torch.set_num_threads(1)
    done = [run(words) for words in json.load(sys.stdin)]
    json.dump(done, sys.stdout)


def run(words: list[str]) -> dict[str, object]:
    """`words` as a shell would have split them."""
    program, option, module, *rest = words
    assert (program, option) == ("python", "-m"), words
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            os._exit(status_of(module, rest))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return {"status": status, "said": said.read().decode()}


def status_of(module: str, words: list[str]) -> int:
    """What `python -m` would have exited with."""
    sys.argv = [module, *words]
    status = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return status


if __name__ == "__main__":
    main()
