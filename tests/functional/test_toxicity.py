from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_rarlhf.functional.toxicity import TOXIC_FROM, maximum_toxicity, toxicity


def test_the_probability_is_that_of_the_toxic_logit():
    logits = torch.tensor([-3.0, 0.0, 2.0], dtype=torch.float64)
    assert toxicity(-logits).numpy() == pytest.approx(1 / (1 + np.exp(-logits.numpy())))
    assert toxicity(torch.tensor(0.0)) == TOXIC_FROM


def test_the_worst_completion_counts():
    scores = torch.tensor([[5.0, -1.0, 3.0], [2.0, 2.0, 2.0]])
    expected = [1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(2.0))]
    assert maximum_toxicity(scores).tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(maximum_toxicity(scores), maximum_toxicity(scores.flip(1)))


@pytest.mark.parametrize("shape", [(3,), (3, 0)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \[n, k\]"):
        maximum_toxicity(torch.zeros(shape))
