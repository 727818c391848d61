"""What makes two runs the same method, and which runs are its training seeds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lightning_rarlhf.errors import UserError
from lightning_rarlhf.records.results import Run

_OF_ONE_RUN = ("networks_sha256", "measured_forward_passes_per_token")
"""what seeds of one decoding-time method do not have in common"""


def training_of(run: Run) -> Mapping[str, Any]:
    """The record of the training that the tested weights are of; empty where it is not known."""
    return run.identity.get("training") or {}


def chosen_by_validation(run: Run) -> bool:
    """Whether the tested state is the one that validation chose among its fit's, by the record."""
    return training_of(run).get("chosen") is not None


def drawn_by(run: Run) -> Mapping[str, Any]:
    """What a decoding-time method says of itself; empty for plain sampling."""
    return run.identity.get("method") or {}


def shared_by_seeds(run: Run) -> dict[str, Any]:
    """Everything that the seeds of one method have in common, by dotted names: how it was trained and how it draws."""
    training = training_of(run)
    known = {
        "module": run.identity.get("module"),
        "sampling": run.identity.get("sampling"),
        "method": {name: value for name, value in drawn_by(run).items() if name not in _OF_ONE_RUN},
        "training.module": training.get("module"),
        "training.settings": training.get("settings"),
        "training.chosen": training.get("chosen"),
    }
    return dict(_flat(known, ""))


def require_seeds(label: str, runs: Sequence[Run]) -> None:
    """Refuse runs under one label that are not training seeds of one method.

    Raises:
        UserError: naming the two runs and what they differ in, or that they are one and the same.
    """
    first = runs[0]
    for run in runs:
        if difference := _first_difference(first, run):
            raise UserError(
                f"{label}: {difference}; seeds of one method expected, name them apart with --name LABEL=RUN"
            )
    _require_apart(label, runs, _its_own)


def require_points(label: str, runs: Sequence[Run]) -> None:
    """Refuse a sweep that has one run twice.

    Raises:
        UserError: naming the two.
    """
    _require_apart(label, runs, _responses)


def _require_apart(label: str, runs: Sequence[Run], of: Callable[[Run], Iterator[str]]) -> None:
    seen: dict[str, Run] = {}
    for run in runs:
        for what in of(run):
            if twin := seen.get(what):
                raise UserError(f"{label}: {twin.folder} and {run.folder} have the same {what}; give each run once")
            seen[what] = run


def same_reference(first: Run, run: Run) -> bool:
    """Whether both measure KL from the same model: equal weights where both record them, else equal names."""
    hashes = [each.identity.get("reference_sha256") for each in (first, run)]
    if None not in hashes:
        return hashes[0] == hashes[1]
    return reference_name(first.identity.get("reference")) == reference_name(run.identity.get("reference"))


def reference_name(name: object) -> str:
    """A reference's name; a folder by its real path."""
    text = str(name)
    return os.path.realpath(text) if os.path.isdir(text) else text


def seeds_unknown(runs: Sequence[Run]) -> bool:
    """Whether nothing but folders or labels says that several runs are seeds of one method."""
    return len(runs) > 1 and not all(training_of(run).get("method_sha256") for run in runs)


def unequal_steps(runs: Sequence[Run]) -> list[int]:
    """How long seeds of one method were trained, ascending; empty if equally or not recorded."""
    steps = {training_of(run)["steps"] for run in runs if training_of(run)}
    return sorted(steps) if len(steps) > 1 else []


def _its_own(run: Run) -> Iterator[str]:
    """What no two seeds have in common."""
    yield from _responses(run)
    if training_of(run).get("seed") is not None:
        yield f"training seed, {training_of(run)['seed']}"


def _responses(run: Run) -> Iterator[str]:
    yield f"responses (sha256 {str(run.identity['generations_sha256'])[:12]}…)"


def _first_difference(first: Run, run: Run) -> str:
    ours, theirs = shared_by_seeds(first), shared_by_seeds(run)
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            return f"{name} is {_short(ours.get(name))} in {first.folder}, {_short(theirs.get(name))} in {run.folder}"
    return ""


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Leaves of nested settings, by dotted names."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
