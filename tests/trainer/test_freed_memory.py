"""Freed memory stays the process's own: a block that is taken again is not cleared page by page again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lightning_rarlhf.trainer import freed_memory

_FAULTS = """
import resource, sys
import torch
from lightning_rarlhf.trainer.freed_memory import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "kept" else None
faults = []
for _ in range(15):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(12 * 2**20) for _ in range(2)]
    del blocks
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, faults[-1])
"""


def faults(how: str, **environment: str) -> tuple[str, int]:
    """What the function said, and the page faults of the last of 15 rounds that take and free 2 x 48 MiB."""
    own = {name: value for name, value in os.environ.items() if name not in freed_memory._OF_THE_USER}
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS, how], capture_output=True, text=True, check=True, env=own | environment
    )
    said, count = done.stdout.split()
    return said, int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_what_was_freed_is_taken_again_without_faults():
    assert faults("returned")[1] > 10_000, "each of the 24,576 pages is cleared again without it"
    assert faults("kept") == ("True", pytest.approx(0, abs=500))


def test_the_users_own_settings_are_left_alone():
    said, count = faults("kept", MALLOC_TRIM_THRESHOLD_="131072")
    assert said == "False"
    assert count > 10_000


def test_another_c_library_has_no_such_function(monkeypatch):
    for name in freed_memory._OF_THE_USER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda _name: object())
    assert not freed_memory.keep_freed_memory()
