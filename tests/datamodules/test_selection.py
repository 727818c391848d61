from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.selection import Labels, Quota, Selection, allocate, class_sizes, divide, draw, hold_out, select
from lightning_rarlhf.errors import DataError

BATCH = 128
VAL = 256


def pool(**classes: tuple[int, int]) -> tuple[Labels, dict[str, np.ndarray]]:
    """Labels and rows of files with so many (wanted, unwanted) rows, classes mixed."""
    labels, sources, start = [], {}, 0
    for name, (wanted, unwanted) in classes.items():
        part = np.random.default_rng(start).permutation([1] * wanted + [0] * unwanted)
        sources[name] = np.arange(start, start + len(part))
        labels.append(part)
        start += len(part)
    return np.concatenate(labels).astype(np.int8), sources


def counts(labels: Labels, rows: np.ndarray) -> tuple[int, int]:
    return int((labels[rows] == 1).sum()), int((labels[rows] == 0).sum())


def assert_disjoint(selection: Selection) -> None:
    rows = np.concatenate([selection.train, selection.val, selection.test])
    assert len(np.unique(rows)) == len(rows)


# the published counts (docs/method.md, section 3)


def test_imdb_counts_of_the_paper() -> None:
    labels, sources = pool(train=(12_440, 12_455), test=(12_450, 12_460))
    chosen = select(labels, sources, train=Quota(), test=Quota(size=5000), val_size=VAL, seed=0)
    assert len(chosen.train) == 24_895
    assert len(chosen.train) // BATCH == 194
    assert len(chosen.test) == 5000
    assert set(chosen.test) <= set(sources["test"])
    assert counts(labels, chosen.val) == (128, 128)
    assert set(chosen.val) <= set(sources["test"])  # training uses all of its own file
    assert_disjoint(chosen)


def test_jigsaw_counts_of_the_paper() -> None:
    labels, sources = pool(train=(100_000, 11_092), test=(50_000, 3_854))
    quotas = {"train": Quota(wanted_fraction=0.7), "test": Quota(wanted_fraction=0.5)}
    bare = select(labels, sources, **quotas, val_size=0, seed=0)
    assert counts(labels, bare.train) == (25_881, 11_092)
    assert len(bare.train) == 36_973
    assert counts(labels, bare.test) == (3_854, 3_854)
    assert not len(bare.val)

    chosen = select(labels, sources, **quotas, val_size=VAL, seed=0)
    assert counts(labels, chosen.val) == (179, 77)
    assert counts(labels, chosen.train) == (25_881, 11_092 - 77)  # both files use all of their toxic rows
    assert len(chosen.train) // BATCH == len(bare.train) // BATCH == 288
    assert np.array_equal(chosen.test, bare.test)
    assert_disjoint(chosen)


def test_real_toxicity_prompts_counts_of_the_paper() -> None:
    labels, sources = pool(all=(77_272, 21_744))
    train, test = divide(sources["all"], labels, 0.2, seed=0)
    assert counts(labels, train)[1] == 17_395
    assert counts(labels, test)[1] == 4_349
    chosen = select(
        labels,
        {"train": train, "test": test},
        train=Quota(wanted_fraction=0.7),
        test=Quota(wanted_fraction=0.5),
        val_size=VAL,
        seed=0,
    )
    assert counts(labels, chosen.test) == (4_349, 4_349)
    assert counts(labels, chosen.val) == (179, 77)
    assert counts(labels, chosen.train) == (40_588, 17_395 - 77)
    assert (57_983 - 77) // BATCH == len(chosen.train) // BATCH == 57_983 // BATCH == 452
    assert_disjoint(chosen)


# ratios


@pytest.mark.parametrize(
    ("wanted", "unwanted", "quota", "expected"),
    [
        (10_000, 300, Quota(wanted_fraction=0.7), (700, 300)),
        (700, 10_000, Quota(wanted_fraction=0.7), (700, 300)),  # the wanted class can be the scarce one
        (50, 50, Quota(wanted_fraction=0.7), (50, 21)),
        (8, 5, Quota(wanted_fraction=0.5), (5, 5)),
        (8, 5, Quota(wanted_fraction=1.0), (8, 0)),
        (8, 5, Quota(wanted_fraction=0.0), (0, 5)),
        (10_000, 300, Quota(wanted_fraction=0.7, size=100), (70, 30)),
        (10_000, 300, Quota(wanted_fraction=0.7, size=5000), (700, 300)),
    ],
)
def test_class_sizes_by_hand(wanted: int, unwanted: int, quota: Quota, expected: tuple[int, int]) -> None:
    assert class_sizes(wanted, unwanted, quota) == expected


@given(
    wanted=st.integers(1, 400),
    unwanted=st.integers(1, 400),
    percent=st.integers(1, 99),
    size=st.none() | st.integers(1, 900),
)
def test_class_sizes_are_there_fit_the_ratio_and_cannot_grow(
    wanted: int, unwanted: int, percent: int, size: int | None
) -> None:
    few, many = class_sizes(wanted, unwanted, Quota(wanted_fraction=percent / 100, size=size))
    total = few + many
    assert 0 <= few <= wanted
    assert 0 <= many <= unwanted
    assert size is None or total <= size
    # neither class is off its share by more than the rows that rounding can cost it
    slack = max(percent / (100 - percent), (100 - percent) / percent, 1)
    assert abs(few * (100 - percent) - many * percent) <= 100 * slack
    if size is None or total < size:
        assert few == wanted or many == unwanted


def test_a_size_takes_the_first_of_the_rows_that_all_would_take() -> None:
    labels, sources = pool(train=(500, 400))
    for fraction in (None, 0.5):
        everything = draw(sources["train"], labels, Quota(wanted_fraction=fraction), 3, "train")
        some = draw(sources["train"], labels, Quota(wanted_fraction=fraction, size=60), 3, "train")
        assert set(some) <= set(everything)
        assert len(some) == 60


def test_rows_come_mixed() -> None:
    labels, sources = pool(train=(3000, 3000))
    rows = draw(sources["train"], labels, Quota(wanted_fraction=0.5), 0, "train")
    share = labels[rows[:1000]].mean()
    assert abs(share - 0.5) < 0.08  # five standard deviations


@pytest.mark.parametrize(("classes", "missing"), [((0, 9), "wanted"), ((9, 0), "unwanted")])
def test_missing_class(classes: tuple[int, int], missing: str) -> None:
    labels, sources = pool(train=classes)
    with pytest.raises(DataError, match=f"none of its 9 rows is of the {missing} class"):
        draw(sources["train"], labels, Quota(wanted_fraction=0.7), 0, "train")


def test_a_class_that_is_not_asked_for_may_be_missing() -> None:
    labels, sources = pool(train=(9, 0))
    assert len(draw(sources["train"], labels, Quota(wanted_fraction=1.0), 0, "train")) == 9


def test_ratios_leave_out_rows_of_unknown_class() -> None:
    labels = np.array([1, 1, 0, 0, -1, -1, -1], dtype=np.int8)
    rows = draw(np.arange(7), labels, Quota(wanted_fraction=0.5), 0, "train")
    assert sorted(rows) == [0, 1, 2, 3]
    assert len(draw(np.arange(7), labels, Quota(), 0, "train")) == 7


# seeds


@pytest.mark.parametrize("files", [("train", "test"), ("train", "test", "val")])
def test_same_seed_same_rows_other_seed_other_rows(files: tuple[str, ...]) -> None:
    """Other rows, not the same ones in another order; validation has a file of its own, or what the others leave."""
    labels, sources = pool(**dict.fromkeys(files, (300, 300)))
    quotas = {"train": Quota(wanted_fraction=0.5, size=100), "test": Quota(size=100), "val_size": 50}
    first, again, other = (select(labels, sources, **quotas, seed=seed) for seed in (1, 1, 2))
    for split in ("train", "val", "test"):
        assert np.array_equal(getattr(first, split), getattr(again, split))
        assert set(getattr(first, split)) != set(getattr(other, split))


def test_validation_is_drawn_by_the_seed_from_what_is_left_over() -> None:
    labels = np.array([1, 0] * 100, dtype=np.int8)
    rows = np.arange(200)
    first, again, other = (hold_out(rows[:20], rows[20:], labels, 10, seed)[1] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert set(first) != set(other)


def test_a_file_is_divided_by_the_seed() -> None:
    labels = np.array([1] * 60 + [0] * 40, dtype=np.int8)
    first, again, other = (divide(np.arange(100), labels, 0.2, seed)[1] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    for label in (1, 0):
        assert set(first[labels[first] == label]) != set(other[labels[other] == label])


def test_one_split_moves_no_other() -> None:
    labels, sources = pool(train=(300, 300), test=(300, 300))
    one = select(labels, sources, train=Quota(), test=Quota(size=100), val_size=50, seed=0)
    two = select(labels, sources, train=Quota(size=80), test=Quota(size=100), val_size=0, seed=0)
    assert np.array_equal(one.test, two.test)
    assert set(two.train) <= set(one.train)


# one file


def test_divide_is_a_partition_class_by_class() -> None:
    labels = np.array([1] * 50 + [0] * 13 + [-1] * 7, dtype=np.int8)
    source = np.arange(len(labels))
    train, test = divide(source, labels, 0.2, seed=0)
    assert sorted([*train, *test]) == list(source)
    for label, size in ((1, 50), (0, 13), (-1, 7)):
        assert (labels[train] == label).sum() == math.floor(size * 0.8)


# validation


@given(st.integers(0, 500), st.tuples(*[st.integers(0, 90)] * 3).filter(any))
def test_allocate_adds_up_and_is_in_proportion(total: int, sizes: tuple[int, int, int]) -> None:
    parts = allocate(total, dict(enumerate(sizes)))
    assert sum(parts.values()) == total
    for label, part in parts.items():
        assert abs(part - total * sizes[label] / sum(sizes)) < 1


def test_validation_takes_leftovers_before_training_rows() -> None:
    labels = np.array([1] * 10 + [0] * 10, dtype=np.int8)
    train, leftovers = np.array([0, 1, 2, 3, 10, 11, 12, 13]), np.array([4, 5, 6, 14])
    kept, val = hold_out(train, leftovers, labels, 4, seed=0)
    assert counts(labels, val) == (2, 2)
    assert set(val) & set(leftovers[labels[leftovers] == 1]) == set(val[labels[val] == 1])
    assert 14 in val  # the only leftover of its class
    assert len(kept) == 7
    assert sorted([*kept, *val[np.isin(val, train)]]) == sorted(train)


def test_validation_that_would_take_all() -> None:
    labels = np.ones(5, dtype=np.int8)
    with pytest.raises(DataError, match="val_size=5 would take all 5 training rows"):
        hold_out(np.arange(5), np.array([], dtype=np.int64), labels, 5, seed=0)


def test_validation_that_one_class_has_too_few_rows_for() -> None:
    labels = np.array([1] * 10 + [0] * 110, dtype=np.int8)
    with pytest.raises(
        DataError, match="val_size=60: at the class ratio of the 20 training rows there are 40, .* below 20"
    ):
        hold_out(np.arange(20), np.arange(20, 120), labels, 60, seed=0)


@given(st.integers(0, 60), st.tuples(*[st.integers(0, 30)] * 4))
def test_validation_has_the_rows_that_were_asked_for_or_is_refused(size: int, of: tuple[int, int, int, int]) -> None:
    labels = np.repeat(np.array([1, 0, 1, 0], dtype=np.int8), of)
    train, leftovers = np.arange(sum(of[:2])), np.arange(sum(of[:2]), sum(of))
    try:
        kept, val = hold_out(train, leftovers, labels, size, seed=0)
    except DataError:
        assert size >= len(train) > 0
    else:
        assert len(val) == (size if len(train) else 0)
        assert sorted([*kept, *np.intersect1d(val, train)]) == train.tolist()


def test_validation_file_of_its_own() -> None:
    labels, sources = pool(train=(30, 30), test=(30, 30), val=(20, 20))
    chosen = select(labels, sources, train=Quota(), test=Quota(), val_size=15, seed=0)
    assert set(chosen.val) <= set(sources["val"])
    assert len(chosen.val) == 15
    assert len(chosen.train) == 60


def test_test_file_alone() -> None:
    labels, sources = pool(test=(5, 5))
    chosen = select(labels, sources, train=Quota(wanted_fraction=0.7), test=Quota(), val_size=4, seed=0)
    assert (len(chosen.train), len(chosen.val), len(chosen.test)) == (0, 0, 10)
