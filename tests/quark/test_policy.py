"""Reward tokens: read before the prompt, never drawn, never shown to reference or reward."""

from __future__ import annotations

import pytest
import torch

from lightning_rarlhf.cached_decoding.cached_decoder import CachedDecoder
from lightning_rarlhf.config import PolicyConfig, SamplingConfig
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.loading.policy_loading import load_actor_critic
from lightning_rarlhf.loading.tokenizer import load_tokenizer
from lightning_rarlhf.quark.policy import ConditionedDecoder, prepend, reward_tokens, with_reward_tokens
from lightning_rarlhf.sampling import SamplingSeed, sample
from tests.test_ppo_module import prompt_batch
from tests.tiny_models import FAMILIES, causal_lm, save_tokenizer

PLAIN = SamplingConfig(max_new_tokens=6)


def conditioned(folder, quantiles=3):
    tokenizer = load_tokenizer(str(folder))
    actor = with_reward_tokens(load_actor_critic(PolicyConfig(pretrained=str(folder)), tokenizer), tokenizer, quantiles)
    return actor, tokenizer


def test_the_token_stands_before_the_first_word_on_either_side():
    ids = torch.tensor([[0, 0, 5], [0, 6, 7], [8, 9, 0]])
    mask = torch.tensor([[False, False, True], [False, True, True], [True, True, False]])
    longer, counts = prepend(ids, mask, torch.tensor([91, 92, 93]))
    assert longer.tolist() == [[0, 0, 91, 5], [0, 92, 6, 7], [93, 8, 9, 0]]
    assert counts.tolist() == [[False, False, True, True], [False, True, True, True], [True, True, True, False]]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_the_token_and_keeps_its_words(policy_folders, family):
    plain = load_actor_critic(
        PolicyConfig(pretrained=str(policy_folders[family])), load_tokenizer(str(policy_folders[family]))
    )
    actor, tokenizer = conditioned(policy_folders[family])
    assert actor.vocabulary == plain.vocabulary
    ids, mask = torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.bool)
    told = [actor.head(actor.trunk_told(ids, mask, token[None])) for token in actor.tokens]
    assert told[0].shape == (1, 3, plain.vocabulary)
    assert not torch.allclose(told[0], told[1])
    # the same as reading the longer sequence with the whole network
    longer = torch.tensor([[int(actor.tokens[0]), 3, 4, 5]])
    direct = actor.lm(input_ids=longer, attention_mask=torch.ones_like(longer)).logits[:, 1:, : plain.vocabulary]
    spare = actor.tokens[actor.tokens < actor.words]  # rows of the embedding that no word used: Qwen's table has some
    assert len(spare) == (len(actor.tokens) if family == "qwen2" else 0)
    assert (told[0].softmax(dim=-1)[..., spare] == 0).all()
    direct[..., spare] = told[0][..., spare]
    torch.testing.assert_close(told[0], direct)
    torch.testing.assert_close(actor.head(actor.trunk(ids, mask)), told[-1])
    del tokenizer


def test_cached_sampling_agrees_with_the_full_forward_pass_and_hides_the_token(policy_folder):
    actor, tokenizer = conditioned(policy_folder)
    batch = prompt_batch(16)
    decoder = ConditionedDecoder(CachedDecoder(actor), actor.best(16))
    samples = sample(decoder, batch, PLAIN, SamplingSeed(base=0), tokenizer, actor.eos_token_ids, keep_logprobs=True)
    again = actor.response_logprobs(samples, PLAIN)
    torch.testing.assert_close(samples.logprobs, again.where(samples.response_mask, 0.0), atol=1e-5, rtol=1e-5)
    assert not torch.isin(samples.sequences, actor.tokens).any()
    assert samples.batch is batch
    other = ConditionedDecoder(CachedDecoder(actor), actor.tokens[:1].expand(16))
    assert sample(other, batch, PLAIN, SamplingSeed(base=0), tokenizer, actor.eos_token_ids).responses != (
        samples.responses
    )


def test_unused_rows_of_the_embedding_are_taken_first_and_still_never_drawn(tmp_path):
    """Qwen's embedding has more rows than its tokenizer has tokens."""
    causal_lm("gpt2", vocabulary=19).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)  # 17 tokens
    actor, _ = conditioned(tmp_path)
    assert actor.tokens.tolist() == [17, 18, 19]
    assert actor.vocabulary == 19
    probs = actor.head(torch.randn(4, actor.hidden_size)).softmax(dim=-1)
    assert probs.shape == (4, 19)
    assert probs[:, 17:].max() == 0


def test_an_exported_policy_keeps_its_tokens_and_generate_never_draws_one(policy_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    actor, tokenizer = conditioned(policy_folder)
    actor.lm.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, reloaded = conditioned(tmp_path)
    assert reward_tokens(reloaded) == reward_tokens(tokenizer) == actor.tokens.tolist()
    assert again.vocabulary == actor.vocabulary
    ids, mask = torch.tensor([[3, 4]]), torch.ones(1, 2, dtype=torch.bool)
    torch.testing.assert_close(again.head(again.trunk(ids, mask)), actor.head(actor.trunk(ids, mask)))
    assert reloaded.decode([*again.tokens.tolist(), 3], skip_special_tokens=True).strip() == "good"
    lm = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.manual_seed(0)
    drawn = lm.generate(ids, attention_mask=mask.long(), do_sample=True, top_k=0, max_new_tokens=40, min_new_tokens=40)
    assert not torch.isin(drawn, actor.tokens).any()


def test_another_number_of_quantiles_than_the_policy_has_is_refused(policy_folder, tmp_path):
    actor, tokenizer = conditioned(policy_folder)
    actor.lm.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has 3 reward tokens, quark.quantiles asks for 5; set quark.quantiles to 3"):
        conditioned(tmp_path, quantiles=5)


def test_a_reward_tokens_name_inside_a_prompt_is_plain_text(policy_folder):
    actor, tokenizer = conditioned(policy_folder)
    ids = tokenizer(["good <|reward_2|>"], add_special_tokens=False, split_special_tokens=True)["input_ids"][0]
    assert not set(ids) & set(actor.tokens.tolist())
