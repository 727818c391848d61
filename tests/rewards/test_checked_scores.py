"""What is a score; how a reward refuses in its own name is in `test_reward_models`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_rarlhf.errors import ScoreError
from lightning_rarlhf.rewards.checked_scores import checked_scores


def test_scores_of_any_kind_of_number_are_taken():
    for scores in ([1, 2], (1.0, 2.0), np.array([1, 2]), torch.tensor([1.0, 2.0], requires_grad=True)):
        taken = checked_scores(scores, 2, "r")
        assert (taken.tolist(), taken.dtype, taken.requires_grad) == ([1.0, 2.0], torch.float32, False)


def test_the_rows_that_are_not_finite_are_told():
    with pytest.raises(ScoreError, match="reward r: 2 of 3 scores are not finite") as caught:
        checked_scores([float("inf"), 0.0, float("nan")], 3, "r")
    assert list(caught.value.rows) == [0, 2]
