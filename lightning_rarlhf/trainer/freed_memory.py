"""What a run on a CPU frees stays the process's, as on an accelerator.

An iteration takes and frees the same hundreds of megabytes many times. Where the C library gives them back to the
system each time, and it depends on chance how often it does, every page that it then takes again has to be cleared.
"""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_SETTINGS = {_MMAP_THRESHOLD: 256 * 2**20, _TRIM_THRESHOLD: 2**31 - 1}
"""bytes: larger blocks, such as weights that were read, still go back at once; so does what is free above the second"""
_OF_THE_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Have glibc keep it, for the whole process; whether it does.

    Not where the user has tuned it by environment variables, nor with another C library or allocator.
    """
    if any(name in os.environ for name in _OF_THE_USER):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    return all(mallopt(name, value) == 1 for name, value in _SETTINGS.items())
