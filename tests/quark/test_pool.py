"""The pool on disk: what it gives back, what a crash leaves, and what it refuses."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from lightning_rarlhf.errors import UserError
from lightning_rarlhf.quark import pool as quark_pool
from lightning_rarlhf.quark.batch import batch_of, rows_of_step
from lightning_rarlhf.quark.pool import QuarkPool

FIRST = ([[1, 2], [3]], [[4, 5, 6], [7]], [0.5, -2.0])
SECOND = ([[8, 9, 10]], [[11, 12]], [3.25])


@pytest.fixture
def pool(tmp_path):
    pool = QuarkPool(tmp_path / "pool")
    pool.start()
    pool.append(*FIRST)
    return pool


def content(pool):
    return pool.scores.tolist(), pool.read(range(len(pool)))


def files(pool):
    return {path.name: path.read_bytes() for path in sorted(pool.folder.iterdir())}


def test_what_goes_in_comes_out_in_any_order(pool):
    pool.append(*SECOND)
    assert pool.scores.tolist() == [0.5, -2.0, 3.25]
    assert pool.read([2, 0]) == [([8, 9, 10], [11, 12]), ([1, 2], [4, 5, 6])]


def test_a_resumed_pool_is_cut_to_the_checkpoint_and_grows_to_the_same_bytes(pool, tmp_path):
    state = pool.state_dict()
    pool.append(*SECOND)
    whole, end = files(pool), pool.state_dict()
    with (pool.folder / "tokens.i32").open("ab") as file:
        file.write(b"\x01\x02\x03")  # half a token, as a kill in the middle of a write leaves it
    again = QuarkPool(pool.folder)
    again.resume(state)
    assert content(again) == ([0.5, -2.0], [([1, 2], [4, 5, 6]), ([3], [7])])
    again.append(*SECOND)
    assert files(again) == whole
    assert again.state_dict() == end


def test_a_new_run_starts_empty_and_empties_no_other_runs_pool(pool):
    before = files(pool)
    with pytest.raises(UserError, match=r"holds another run's 2 responses; go on with --ckpt_path last, or choose"):
        QuarkPool(pool.folder).start()
    assert files(pool) == before
    again = QuarkPool(pool.folder)
    again.start(replace=True)
    assert len(again) == 0
    assert all(path.stat().st_size == 0 for path in pool.folder.iterdir())


def test_a_pool_that_is_not_the_checkpoints_is_refused(pool, tmp_path):
    state = pool.state_dict()
    with pytest.raises(UserError, match=r"the pool has 0 bytes, the checkpoint was written with 48"):
        QuarkPool(tmp_path / "elsewhere").resume(state)
    index = pool.folder / "index.bin"
    index.write_bytes(index.read_bytes()[::-1])
    before = files(pool)
    with pytest.raises(UserError, match="not the pool that the checkpoint was written with"):
        QuarkPool(pool.folder).resume(state)
    assert files(pool) == before


@pytest.mark.parametrize("failing", ["tokens.i32", "index.bin"])
def test_a_full_disk_is_one_line_and_leaves_the_pool_as_it_was(pool, monkeypatch, failing):
    """The disk takes half of the bytes and refuses the rest, in either file."""
    before, state, write = files(pool), pool.state_dict(), quark_pool._write

    def full(path, data):
        if path.name != failing:
            return write(path, data)
        with path.open("ab") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(quark_pool, "_write", full)
    with pytest.raises(
        UserError, match=r"cannot grow \(No space left on device\); its 2 responses are intact: make room, then"
    ):
        pool.append(*SECOND)
    assert files(pool) == before
    assert pool.state_dict() == state
    monkeypatch.setattr(quark_pool, "_write", write)
    pool.append(*SECOND)
    assert len(pool) == 3


def test_memory_per_response_is_the_index_alone(tmp_path):
    pool = QuarkPool(tmp_path)
    pool.start()
    pool.append([[1] * 500] * 50, [[2] * 500] * 50, [0.0] * 50)
    assert pool._records.nbytes == 50 * 24


def test_batches_are_padded_on_both_sides(pool):
    batch = batch_of(pool, np.array([1, 0]), np.array([4, 0]), pad_id=99)
    assert batch.sequences.tolist() == [[99, 3, 7, 99, 99], [1, 2, 4, 5, 6]]
    assert batch.attention_mask.tolist() == [[False, True, True, False, False], [True] * 5]
    assert batch.response_mask.tolist() == [[True, False, False], [True] * 3]
    assert batch.quantiles.tolist() == [0, 4]


def test_a_pass_takes_each_response_once_and_passes_differ():
    steps = [rows_of_step(10, step, 3, (7, 1)).tolist() for step in range(10)]
    assert [len(rows) for rows in steps] == [3] * 10
    drawn = [row for rows in steps for row in rows]
    passes = [drawn[:10], drawn[10:20], drawn[20:]]
    assert all(sorted(one_pass) == list(range(10)) for one_pass in passes)
    assert passes[0] != passes[1] != passes[2]
    assert steps[0] == rows_of_step(10, 0, 3, (7, 1)).tolist() != rows_of_step(10, 0, 3, (7, 2)).tolist()
    assert sorted(rows_of_step(2, 5, 3, (7, 1)).tolist()) == [0, 1]
