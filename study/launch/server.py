"""The server that workers are forked from: it imports once, computes nothing, and does so while a sweep is planned."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext

from study.launch.voices import Voices

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PRELOADED = ["study.launch.worker", "study.quality", "study.score_again", "sklearn.datasets", "torch._dynamo"]
"""All that a run imports, dynamo for its optimiser: half of a worker's first run was spent on importing."""

VOICES = Voices()


def server(threads: int) -> ForkServerContext:
    """Where workers come from, with libraries told to use this many threads."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))  # read as libraries are loaded
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def warm_up(threads: int) -> None:
    """Let the server begin to import, on another core than ours; Ctrl-C is for us to pass on."""
    server(threads)
    if threading.current_thread() is not threading.main_thread():
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: it would be heard in the middle of an import
    try:
        resource_tracker.ensure_running()  # what that one says is for us
        with VOICES.heard():
            forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
