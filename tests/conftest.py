"""One thread per test process (they run side by side), and property tests that repeat themselves."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
if not os.access(Path.home(), os.W_OK):  # where Triton keeps what it compiled; commands that tests start hear of it too
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"triton-{os.getuid()}"))
settings.register_profile("repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
