"""Which runs are one method's training seeds, and what the method is called."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_rarlhf.errors import UserError
from lightning_rarlhf.plain_text import name_to_show
from lightning_rarlhf.results import Run

_SEED_FOLDER = re.compile(r"(seed[-_=]?)?\d+|version_\d+", re.IGNORECASE)
_SEED_SUFFIX = re.compile(r"[-_.]seed[-_=]?\d+$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to get a policy, trained once or with several seeds."""

    label: str
    runs: tuple[Run, ...]
    """one per training seed"""


def method_folder(run: Path) -> Path:
    """The run's folder without what names its seed.

    >>> [method_folder(Path(run)).as_posix() for run in ("/a/rlhf/seed_1", "/a/rlhf-seed2", "/a/rlhf")]
    ['/a/rlhf', '/a/rlhf', '/a/rlhf']
    """
    folder = Path(os.path.abspath(run))
    if _SEED_FOLDER.fullmatch(folder.name):
        folder = folder.parent
    return folder.with_name(_SEED_SUFFIX.sub("", folder.name)) if folder.name else folder


def labels_of(folders: Sequence[Path], given: Mapping[Path, str]) -> list[str]:
    """A label for each run: the one given, else the method folder's name, with its parent's where that is ambiguous."""
    methods = [method_folder(folder) for folder in folders]
    unlabelled = {method for folder, method in zip(folders, methods, strict=True) if folder not in given}
    names = [method.name for method in unlabelled]
    taken = set(given.values())
    label = {
        method: f"{method.parent.name}/{method.name}"
        if names.count(method.name) > 1 or method.name in taken
        else method.name
        for method in unlabelled
    }
    return [given.get(folder) or name_to_show(label[method]) for folder, method in zip(folders, methods, strict=True)]


def group(runs: Iterable[Run], labels: Iterable[str]) -> list[Method]:
    """Runs of one label are one method's seeds; methods are in the order of their first run.

    Raises:
        UserError: runs of one label that cannot be seeds of one method: other code, or the very same responses.
    """
    groups: dict[str, list[Run]] = {}
    for run, label in zip(runs, labels, strict=True):
        groups.setdefault(label, []).append(run)
    for label, members in groups.items():
        _require_seeds(label, members)
    return [Method(label=label, runs=tuple(members)) for label, members in groups.items()]


def _require_seeds(label: str, runs: Sequence[Run]) -> None:
    seen: dict[str, Run] = {}
    for run in runs:
        module, first = run.identity.get("module"), runs[0].identity.get("module")
        if module != first:
            raise UserError(
                f"{label}: {runs[0].folder} is a {first}, {run.folder} a {module}; "
                "seeds of one method expected, name them apart with --name LABEL=RUN"
            )
        generations = str(run.identity["generations_sha256"])
        if twin := seen.get(generations):
            raise UserError(
                f"{label}: {twin.folder} and {run.folder} hold the same responses; "
                "seeds of one method expected, give each run once"
            )
        seen[generations] = run
