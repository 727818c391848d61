from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_rarlhf.functional.tail_reward import as_score, lowest_rows, rows_at_most, tail_reward

PAIRS = st.lists(st.tuples(st.integers(-9, 9), st.integers(-4, 4)), min_size=1, max_size=30)


def columns(pairs):
    table = torch.tensor(pairs, dtype=torch.float64)
    return table[:, 0], table[:, 1]


@given(PAIRS, st.integers(-5, 5))
def test_threshold_against_a_plain_selection(pairs, threshold):
    scores, prompt_scores = columns(pairs)
    chosen = [score for score, own in pairs if own <= threshold]
    expected = np.mean(chosen) if chosen else np.nan
    assert tail_reward(scores, prompt_scores, threshold).item() == pytest.approx(expected, nan_ok=True)
    assert len(rows_at_most(prompt_scores, threshold)) == len(chosen)


@given(PAIRS, st.sampled_from([0.01, 0.1, 0.2, 0.5, 1.0]))
def test_lowest_share_against_a_stable_sort(pairs, share):
    _, prompt_scores = columns(pairs)
    size = max(1, int(np.ceil(round(share * len(pairs), 9))))
    order = sorted(range(len(pairs)), key=lambda row: pairs[row][1])[:size]
    assert lowest_rows(prompt_scores, share).tolist() == sorted(order)


def test_everybody_is_the_mean():
    scores = torch.tensor([1.0, 2.0, 6.0])
    assert tail_reward(scores, torch.tensor([0.0, 1.0, 2.0]), 2.0) == 3


def test_columns_that_do_not_belong_together():
    with pytest.raises(ValueError, match=r"prompt_scores: got shape \[2\], expected floats \[n\] as scores, \[3\]"):
        tail_reward(torch.zeros(3), torch.zeros(2), 0.0)


@given(st.floats(-1e6, 1e6))
def test_a_score_at_the_threshold_is_at_it_in_either_precision(threshold):
    at = torch.tensor([threshold], dtype=torch.float32)
    above, below = torch.nextafter(at, torch.tensor(torch.inf)), torch.nextafter(at, torch.tensor(-torch.inf))
    own = torch.cat([at, above, below])
    for prompt_scores in (own, own.double()):
        assert rows_at_most(prompt_scores, threshold).tolist() == [0, 2]


def test_a_threshold_beyond_float32_is_above_every_score():
    assert as_score(1e300) == float("inf")
