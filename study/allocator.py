"""Ask glibc to keep large freed blocks: on CPUs, handing them back after every operation costs more than the maths."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def keep_freed_memory() -> str:
    """Raise malloc's thresholds for this process, before the first tensor; says what was done.

    The page faults of returning and re-requesting every activation dominate small-model training
    on CPUs; with these thresholds freed blocks stay in the process and are reused.
    """
    if platform.libc_ver()[0] != "glibc":
        return "untouched: not glibc"
    libc = ctypes.CDLL("libc.so.6")
    settings = {_MMAP_THRESHOLD: 1 << 30, _TRIM_THRESHOLD: -1, _TOP_PAD: 256 << 20}  # -1: never trim
    accepted = [libc.mallopt(option, value) == 1 for option, value in settings.items()]
    return "freed memory kept" if all(accepted) else "refused by mallopt"
