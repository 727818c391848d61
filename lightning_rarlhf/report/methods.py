"""Which runs are one method's training seeds, and what the method is called."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_rarlhf.records.results import Run
from lightning_rarlhf.report.identity import require_points, require_seeds
from lightning_rarlhf.terminal.plain_text import name_to_show

_SEED_FOLDER = re.compile(r"seed[-_=]?\d+", re.IGNORECASE)
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
    """A label for each run: the one given, else the method folder's name, with as many parents as tell it apart."""
    methods = [method_folder(folder) for folder in folders]
    unlabelled = {method for folder, method in zip(folders, methods, strict=True) if folder not in given}
    taken = set(given.values())
    label = {method: _shortest_name(method, unlabelled - {method}, taken) for method in unlabelled}
    return [given.get(folder) or name_to_show(label[method]) for folder, method in zip(folders, methods, strict=True)]


def _shortest_name(method: Path, others: set[Path], taken: set[str]) -> str:
    for count in range(1, len(method.parts)):
        name = "/".join(method.parts[-count:])
        if name not in taken and not any(other.parts[-count:] == method.parts[-count:] for other in others):
            return name
    return method.as_posix()


def group(runs: Iterable[Run], labels: Iterable[str], *, sweep: bool = False) -> list[Method]:
    """Runs of one label are one method's seeds, or its points in a sweep; methods are in the order of their first run.

    Raises:
        UserError: runs of one label that are no seeds of one method (`identity.require_seeds`), or a run that
            a sweep has twice.
    """
    groups: dict[str, list[Run]] = {}
    for run, label in zip(runs, labels, strict=True):
        groups.setdefault(label, []).append(run)
    for label, members in groups.items():
        (require_points if sweep else require_seeds)(label, members)
    return [Method(label=label, runs=tuple(members)) for label, members in groups.items()]
