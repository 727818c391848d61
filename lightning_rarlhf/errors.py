"""Errors that a user can cause, each one line: what was got, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class UserError(ValueError):
    """Raised for input that the user can mend; ``train.py`` prints its text alone, without a traceback.

    Attributes:
        rows: 0-based rows of the batch that are at fault; empty = not known, or not a matter of rows.
    """

    def __init__(self, message: str = "", *, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


def mistake_behind(error: BaseException | None) -> UserError | None:
    """The `UserError` that `error` is, or that a library wrapped into it; None if there is none."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


class DataError(UserError):
    """A dataset that cannot be read, lacks a column or a class, or has no row left after the filters."""


class ModelError(UserError):
    """A policy, tokenizer or reward model that cannot be loaded or does not fit the run."""


class RewardError(UserError):
    """A reward that returned something other than one finite score per response."""


class WriteError(UserError):
    """A file or folder that could not be written: the disk is full, permission is missing, ..."""


class NumericalError(UserError):
    """A number that is not finite where training needs one; no weight was updated with it.

    Attributes:
        evidence: tensors that show it, by name, for a crash bundle.
    """

    def __init__(self, message: str, *, rows: Sequence[int] = (), evidence: Mapping[str, Any] | None = None) -> None:
        super().__init__(message, rows=rows)
        self.evidence = dict(evidence or {})


class ScoreError(RewardError, NumericalError):
    """A reward whose scores are not all finite."""


class ScheduleError(UserError):
    """A risk schedule that cannot do what it was asked for in the iterations that the run has."""


def first_few(numbers: Sequence[int], shown: int = 8) -> str:
    """The first of many row numbers, for a message."""
    return ", ".join(map(str, numbers[:shown])) + (", ..." if len(numbers) > shown else "")
