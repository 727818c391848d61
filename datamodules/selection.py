"""Which rows train, validate and test: arithmetic on class labels alone, the same for the same seed on any machine.

Labels: 1 = wanted class, 0 = unwanted, -1 = unknown. Rows are numbers into one pool that holds every source file.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lightning_rarlhf.errors import DataError

Rows: TypeAlias = NDArray[np.int64]
Labels: TypeAlias = NDArray[np.int8]

CLASS_NAMES = {1: "wanted", 0: "unwanted", -1: "unknown"}


@dataclass(frozen=True, kw_only=True)
class Quota:
    """How many rows a split takes."""

    wanted_fraction: float | None = None
    """share of the wanted class, in [0, 1]; the class that is scarce for it is used whole; None = rows as they come"""
    size: int | None = None
    """rows at most; None = all that the fraction allows"""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Disjoint rows of the pool, each in an order drawn from the seed, so that any leading part is a fair sample."""

    train: Rows
    val: Rows
    test: Rows


def stream(seed: int, *names: str) -> np.random.Generator:
    """Random numbers of their own for each purpose, so that changing one split's size moves no other split."""
    return np.random.default_rng([seed, *"/".join(names).encode()])


def class_sizes(wanted: int, unwanted: int, quota: Quota) -> tuple[int, int]:
    """Rows to take of the (wanted, unwanted) class so that their ratio is `quota.wanted_fraction`.

    The scarce class is used whole and the other cut to the floor: 11,092 unwanted rows at .7 go with 25,881 wanted
    (docs/method.md, section 3); a smaller `quota.size` then scales both.
    """
    share = Fraction(str(quota.wanted_fraction))  # through str: 0.7 is to mean 7/10
    if share in (0, 1):
        sizes = (wanted, 0) if share == 1 else (0, unwanted)
    elif wanted * (1 - share) >= unwanted * share:
        sizes = (int(unwanted * share / (1 - share)), unwanted)
    else:
        sizes = (wanted, int(wanted * (1 - share) / share))
    if quota.size is None or sum(sizes) <= quota.size:
        return sizes
    few = round(quota.size * share)
    return few, quota.size - few


def draw(rows: Rows, labels: Labels, quota: Quota, seed: int, split: str) -> Rows:
    """Choose from `rows` as `quota` says; `labels` are those of the whole pool.

    Raises:
        DataError: a class that the ratio needs has no row.
    """
    if quota.wanted_fraction is None:
        return stream(seed, split).permutation(rows)[: quota.size]
    classes = {label: rows[labels[rows] == label] for label in (1, 0)}
    for label, share in ((1, quota.wanted_fraction), (0, 1 - quota.wanted_fraction)):
        if share > 0 and not len(classes[label]):
            raise DataError(
                f"{split}: {quota.wanted_fraction:g} of the rows should be of the wanted class, but none of its "
                f"{len(rows)} rows is of the {CLASS_NAMES[label]} class; give other data or set "
                f"{split}_wanted_fraction to null"
            )
    sizes = class_sizes(len(classes[1]), len(classes[0]), quota)
    parts = [
        stream(seed, split, CLASS_NAMES[label]).permutation(classes[label])[:size]
        for label, size in zip((1, 0), sizes, strict=True)
    ]
    return stream(seed, split, "order").permutation(np.concatenate(parts))


def divide(source: Rows, labels: Labels, test_fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Split one file's rows into (train, test), class by class; a class of n gives ⌊n·(1 − test_fraction)⌋ to train."""
    share = 1 - Fraction(str(test_fraction))
    train, test = [], []
    for label, name in CLASS_NAMES.items():
        rows = stream(seed, "divide", name).permutation(source[labels[source] == label])
        kept = int(len(rows) * share)
        train.append(rows[:kept])
        test.append(rows[kept:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def allocate(total: int, counts: dict[int, int]) -> dict[int, int]:
    """Share `total` among classes in proportion to `counts`, by largest remainder, so that the parts add up."""
    whole = sum(counts.values())
    if not whole:
        return dict.fromkeys(counts, 0)
    exact = {label: Fraction(total * count, whole) for label, count in counts.items()}
    parts = {label: int(value) for label, value in exact.items()}
    by_remainder = sorted(exact, key=lambda label: (parts[label] - exact[label], -counts[label]))
    for label in by_remainder[: total - sum(parts.values())]:
        parts[label] += 1
    return parts


def hold_out(train: Rows, leftovers: Rows, labels: Labels, size: int, seed: int) -> tuple[Rows, Rows]:
    """Take `size` validation rows at the class ratio of `train`; returns (train, val).

    Rows that no split uses come first. A class with too few of them gives up rows of `train`; the other class keeps
    its own, so that the epoch shrinks by no more than what validation takes.

    Raises:
        DataError: `train` would be left empty, or a class has too few rows.
    """
    counts = {label: int((labels[train] == label).sum()) for label in CLASS_NAMES}
    taken, given_up = [], np.zeros(len(train), dtype=bool)
    for label, wanted in allocate(size, counts).items():
        free = leftovers[labels[leftovers] == label]
        part = stream(seed, "val", CLASS_NAMES[label]).permutation(free)[:wanted]
        own = np.flatnonzero(labels[train] == label)[::-1][: wanted - len(part)]
        given_up[own] = True
        taken += [part, train[own]]
    _require_rows(size, sum(map(len, taken)), train, given_up)
    return train[~given_up], stream(seed, "val", "order").permutation(np.concatenate(taken))


def _require_rows(size: int, found: int, train: Rows, given_up: NDArray[np.bool_]) -> None:
    if not len(train):
        return
    if given_up.all():
        raise DataError(
            f"val_size={size} would take all {len(train)} training rows; lower it (0 = no validation) or add rows"
        )
    if found < size:  # a class has not enough, and would train no longer
        raise DataError(
            f"val_size={size}: at the class ratio of the {len(train)} training rows there are {found}, with every "
            f"training row of one class; set it below {len(train)} (0 = no validation) or add rows"
        )


def select(
    labels: Labels,
    sources: dict[str, Rows],
    *,
    train: Quota,
    test: Quota,
    val_size: int,
    seed: int,
) -> Selection:
    """Choose the three splits from a pool with `labels`.

    Args:
        labels: i8 [N], classes of the pool's rows.
        sources: rows of each source file by split name: `train`, `test` and perhaps `val`; absent = empty.
        train: how many rows train.
        test: how many rows test.
        val_size: validation rows; from the `val` source if there is one, else as in `hold_out`.
        seed: chooses rows and their order.

    Raises:
        DataError: a class that a ratio needs has no row, or validation would take every training row.
    """
    empty = np.empty(0, dtype=np.int64)
    train_source, test_source = sources.get("train", empty), sources.get("test", empty)
    train_rows = draw(train_source, labels, train, seed, "train") if len(train_source) else empty
    test_rows = draw(test_source, labels, test, seed, "test") if len(test_source) else empty
    if "val" in sources:
        val_rows = draw(sources["val"], labels, Quota(size=val_size), seed, "val")
    else:
        leftovers = np.setdiff1d(np.concatenate([train_source, test_source]), np.concatenate([train_rows, test_rows]))
        train_rows, val_rows = hold_out(train_rows, leftovers, labels, val_size, seed)
    return Selection(train=train_rows, val=val_rows, test=test_rows)
