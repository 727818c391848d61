"""Errors that a user can cause, each one line: what was got, what was expected, what to do."""


class UserError(ValueError):
    """Raised for input that the user can mend; ``train.py`` prints its text alone, without a traceback."""


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


class ScheduleError(UserError):
    """A risk schedule that cannot do what it was asked for in the iterations that the run has."""
