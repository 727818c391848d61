"""A reward whose process hangs when it has scored enough responses: something to kill in the middle of a test."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

_scored = 0


def words(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Words of each response; after RARLHF_HANG_AFTER responses (unset = never), a file RARLHF_HANGS and no more."""
    global _scored
    limit = os.environ.get("RARLHF_HANG_AFTER")
    if limit is not None and _scored >= int(limit):
        Path(os.environ["RARLHF_HANGS"]).touch()
        time.sleep(600)
    _scored += sum(map(bool, responses))
    return [len(response.split()) + 0.001 * len(response) - 3.0 for response in responses]


def harshness(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """A second opinion."""
    return [-float(response.count("rude")) for response in responses]
