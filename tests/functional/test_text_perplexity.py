from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.text import perplexity as pooled_perplexity

from lightning_rarlhf.functional.perplexity import text_perplexity


def test_uniform_tokens_have_the_vocabularys_size():
    logprobs = torch.full((2, 5), 1 / 7).log()
    mask = torch.tensor([[True] * 5, [True, False, False, True, False]])
    assert text_perplexity(logprobs, mask).tolist() == pytest.approx([7, 7])


def test_one_text_is_what_torchmetrics_says_of_it_and_the_mean_is_over_texts():
    torch.manual_seed(0)
    logits, tokens = torch.randn(2, 6, 9), torch.randint(9, (2, 6))
    logprobs = logits.log_softmax(-1).gather(2, tokens[..., None]).squeeze(2)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 2:] = False
    found = text_perplexity(logprobs, mask)
    for row, length in enumerate((6, 2)):
        expected = pooled_perplexity(logits[row : row + 1, :length], tokens[row : row + 1, :length])
        assert found[row].item() == pytest.approx(expected.item(), rel=1e-5)
    pooled = pooled_perplexity(logits, tokens.masked_fill(~mask, -100), ignore_index=-100)
    assert found.mean().item() != pytest.approx(pooled.item(), rel=1e-3)


def test_what_does_not_count_is_never_read_and_a_text_without_tokens_is_unknown():
    logprobs = torch.tensor([[-1.0, torch.nan], [-torch.inf, -2.0]])
    assert text_perplexity(logprobs, torch.tensor([[True, False], [False, True]])).log().tolist() == pytest.approx(
        [1, 2]
    )
    assert text_perplexity(logprobs, torch.zeros(2, 2, dtype=torch.bool)).isnan().all()


def test_a_policy_gone_astray_has_a_number_and_is_no_unknown():
    assert text_perplexity(torch.tensor([[-90.0, -110.0]]), torch.ones(1, 2, dtype=torch.bool)).log().item() == 100
