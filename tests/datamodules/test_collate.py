from __future__ import annotations

import pytest
import torch

from datamodules.collate import pad

PAD = 9


def test_left() -> None:
    ids, mask = pad([[1, 2, 3], [4]], 4, PAD, left=True)
    assert ids.tolist() == [[9, 1, 2, 3], [9, 9, 9, 4]]
    assert mask.tolist() == [[False, True, True, True], [False, False, False, True]]
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)


def test_right() -> None:
    ids, mask = pad([[1, 2, 3], [4]], 3, PAD, left=False)
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]


@pytest.mark.parametrize("left", [True, False])
def test_a_pad_token_inside_a_text_counts(left: bool) -> None:
    """GPT-2 pads with the token that also ends texts: the mask must come from lengths."""
    _, mask = pad([[1, PAD, PAD]], 3, PAD, left=left)
    assert mask.all()


def test_no_rows() -> None:
    ids, mask = pad([], 5, PAD, left=True)
    assert ids.shape == mask.shape == (0, 5)
