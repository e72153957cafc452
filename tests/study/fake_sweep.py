"""`python -m tests.study.fake_sweep KIND sweep.yaml ...`: a sweep whose runs are one of tests.study.fake_runs."""

from __future__ import annotations

import sys

import study.launch.server
from study.sweep import leave, main
from tests.study import fake_runs

if __name__ == "__main__":
    study.launch.server.PRELOADED[:] = ["study.launch.worker"]  # all that a fake run needs
    leave(main(sys.argv[2:], getattr(fake_runs, sys.argv[1])))
