"""Calls of other people's code: given a time, tried again, and, when all that failed, told which texts are to blame."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt

from lightning_rarlhf.errors import RewardError, first_few

_log = logging.getLogger(__name__)

Scorer = Callable[[list[str], list[str]], object]

_SEARCH_CALLS = 64
"""at most, to find the texts that a function fails on"""


@dataclass(frozen=True, kw_only=True)
class RetryConfig:
    """How a reward function that raises or hangs is treated."""

    attempts: PositiveInt = 3
    """calls with the same texts before the run ends, the first one included"""
    backoff: NonNegativeFloat = 1.0
    """seconds before the second call; twice as long before each further one"""
    timeout: PositiveFloat | None = None
    """seconds that a call may take; it is then left behind in a thread of its own, so the function must bear to be
    called again meanwhile. none = as long as it likes"""


def call_scorer(
    scorer: Scorer, prompts: Sequence[str], responses: Sequence[str], *, name: str, retry: RetryConfig
) -> object:
    """What `scorer` returns, at the first attempt that returns.

    Raises:
        RewardError: every attempt raised or took too long; names the rows at fault, never a text.
    """
    for attempt in range(1, retry.attempts + 1):
        try:
            return _timed(scorer, list(prompts), list(responses), retry.timeout)
        except Exception as error:
            failure = error
            if attempt < retry.attempts:
                pause = retry.backoff * 2 ** (attempt - 1)
                _log.warning(
                    "reward %s: attempt %d of %d failed (%s); again in %g s",
                    name,
                    attempt,
                    retry.attempts,
                    _described(error),
                    pause,
                )
                time.sleep(pause)
    rows = list(range(len(responses)))
    if not isinstance(failure, TimeoutError):
        rows = _rows_at_fault(scorer, prompts, responses, retry.timeout)
    raise RewardError(
        f"reward {name}: failed {retry.attempts} times ({_described(failure)}) on {len(rows)} of {len(responses)} "
        f"responses ({first_few(rows)}); fix the function, or raise its retry.attempts or retry.timeout",
        rows=rows,
    ) from failure


def _timed(scorer: Scorer, prompts: list[str], responses: list[str], timeout: float | None) -> object:
    """Call in this thread; with a time limit, in one that can be left behind."""
    if timeout is None:
        return scorer(prompts, responses)
    outcome: list[tuple[bool, Any]] = []
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def call() -> None:
        try:
            if device is not None:  # a new thread begins on device 0
                torch.cuda.set_device(device)
            outcome.append((True, scorer(prompts, responses)))
        except BaseException as error:
            outcome.append((False, error))

    thread = threading.Thread(target=call, daemon=True, name="reward")
    thread.start()
    thread.join(timeout)
    if not outcome:
        raise TimeoutError(f"took more than {timeout:g} s")
    returned, value = outcome[0]
    if not returned:
        raise value
    return value


def _rows_at_fault(
    scorer: Scorer, prompts: Sequence[str], responses: Sequence[str], timeout: float | None
) -> list[int]:
    """Halve the batch where it fails, again and again. All rows, if no part of it fails by itself, or after a while."""
    everything = list(range(len(responses)))
    at_fault: list[int] = []
    suspects = [everything]
    calls = 0
    while suspects:
        rows = suspects.pop(0)
        if len(rows) == 1 and rows != everything:
            at_fault += rows
            continue
        for half in filter(None, (rows[: len(rows) // 2], rows[len(rows) // 2 :])):
            calls += 1
            if calls > _SEARCH_CALLS:
                return sorted({*at_fault, *rows, *(row for group in suspects for row in group)})
            try:
                _timed(scorer, [prompts[row] for row in half], [responses[row] for row in half], timeout)
            except TimeoutError:
                return everything
            except Exception:
                if half == everything:
                    return everything
                suspects.append(half)
    return sorted(at_fault) or everything


def _described(error: Exception) -> str:
    """Kind and place of an error; not its message, which may quote a text."""
    if isinstance(error, TimeoutError) and error.__traceback__ is not None and str(error).startswith("took more than"):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
