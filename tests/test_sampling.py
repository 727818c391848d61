from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_rarlhf.cached_decoding.cached_decoder import CachedDecoder
from lightning_rarlhf.config import PolicyConfig, SamplingConfig
from lightning_rarlhf.data_types import PromptBatch
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.loading.policy_loading import load_actor_critic
from lightning_rarlhf.loading.tokenizer import load_tokenizer
from lightning_rarlhf.policy import ActorCritic
from lightning_rarlhf.sampling import SamplingSeed, finish_reasons, require_room, sample
from tests.tiny_models import FAMILIES

PROMPTS = [[3, 4, 5, 6, 7], [8, 9], [10, 3, 4]]


def batch_of(prompts: list[list[int]], index: list[int] | None = None, extra_left: int = 0) -> PromptBatch:
    width = max(map(len, prompts)) + extra_left
    rows = len(prompts)
    return PromptBatch(
        input_ids=torch.tensor([[1] * (width - len(row)) + row for row in prompts]),
        attention_mask=torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in prompts]),
        index=torch.tensor(index or range(rows)),
        prompts=("",) * rows,
        labels=torch.full((rows,), -1),
        source_scores=torch.full((rows,), torch.nan),
    )


class FixedDecoder:
    """The same distribution at every step: counts calls, needs no model."""

    def __init__(self, probabilities: list[float]) -> None:
        self.logits = torch.tensor(probabilities).log()
        self.calls = 0

    def start(self, input_ids, attention_mask):
        self.calls += 1
        return self.logits.repeat(len(input_ids), 1)

    def advance(self, tokens, attention_mask):
        self.calls += 1
        return self.logits.repeat(len(tokens), 1)

    def keep(self, rows):
        pass


class Tokens:
    """Stands for a tokenizer where only ids matter."""

    pad_token_id = 1

    def batch_decode(self, rows, **_):
        return [" ".join(map(str, row)) for row in rows]


EOS = torch.tensor([1])
SEED = SamplingSeed(base=5)


def draw(probabilities, rows=4, **sampling):
    decoder = FixedDecoder(probabilities)
    samples = sample(decoder, batch_of([[3]] * rows), SamplingConfig(**sampling), SEED, Tokens(), EOS)
    return samples, decoder


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_the_cached_loop_draws_from_the_plain_models_distribution(self, policy_folders, family):
        """Redraw every token from the model's own uncached logits with the same random numbers."""
        tokenizer = load_tokenizer(str(policy_folders[family]))
        actor = load_actor_critic(PolicyConfig(pretrained=str(policy_folders[family])), tokenizer)
        sampling = SamplingConfig(max_new_tokens=12)
        samples = sample(CachedDecoder(actor), batch_of(PROMPTS), sampling, SEED, tokenizer, actor.eos_token_ids)
        uniforms = SEED.uniforms(torch.arange(3), 12)
        for row, prompt in enumerate(PROMPTS):
            text = list(prompt)
            for step in range(int(samples.lengths[row])):
                probabilities = actor.lm(torch.tensor([text])).logits[0, -1].softmax(-1)
                token = int((probabilities.cumsum(0) <= uniforms[row, step]).sum())
                assert samples.sequences[row, 5 + step] == token
                text.append(token)

    def test_the_loops_hidden_states_give_the_statistics_of_a_full_pass(self, policy_folders, family):
        tokenizer = load_tokenizer(str(policy_folders[family]))
        actor = load_actor_critic(PolicyConfig(pretrained=str(policy_folders[family])), tokenizer)
        sampling = SamplingConfig(max_new_tokens=12, temperature=0.8)
        decoder = CachedDecoder(actor, keep_hidden=True)
        ends = actor.eos_token_ids
        samples = sample(decoder, batch_of(PROMPTS), sampling, SEED, tokenizer, ends, keep_logprobs=True)
        full = actor.statistics(samples, sampling)
        with_all = replace(samples, hidden=decoder.hidden(samples.response_mask.shape[1]))
        for drawn in (with_all, replace(with_all, logprobs=None, entropy=None)):
            kept = actor.statistics(drawn, sampling)
            for name in full._fields:
                mine, theirs = getattr(kept, name), getattr(full, name)
                assert mine.shape == drawn.response_mask.shape
                torch.testing.assert_close(mine[drawn.response_mask], theirs[drawn.response_mask], atol=1e-5, rtol=0)

    def test_rows_that_have_ended_are_read_no_longer_and_the_others_do_not_notice(self, policy_folders, family):
        tokenizer = load_tokenizer(str(policy_folders[family]))
        actor = load_actor_critic(PolicyConfig(pretrained=str(policy_folders[family])), tokenizer)
        sampling = SamplingConfig(max_new_tokens=12)
        ends = torch.arange(0, actor.vocabulary, 4)  # so many that rows end at every step
        prompts = PROMPTS * 6
        read: list[int] = []
        hook = actor.lm.base_model.register_forward_pre_hook(
            lambda _module, _args, given: read.append(len(given["input_ids"])), with_kwargs=True
        )
        decoder = CachedDecoder(actor, keep_hidden=True)
        together = sample(decoder, batch_of(prompts), sampling, SEED, tokenizer, ends, keep_logprobs=True)
        hook.remove()
        assert read[0] == len(prompts)
        assert len(set(read)) > 2  # thinned out more than once
        assert all(after == before or 2 * after <= before for before, after in pairwise(read))
        full = actor.statistics(replace(together, logprobs=None, entropy=None), sampling)
        kept = actor.statistics(replace(together, hidden=decoder.hidden(together.response_mask.shape[1])), sampling)
        for mine, theirs in zip(kept, full, strict=True):
            assert mine.shape == together.response_mask.shape
            torch.testing.assert_close(mine[together.response_mask], theirs[together.response_mask], atol=1e-5, rtol=0)
        for row, prompt in enumerate(prompts):
            alone = sample(CachedDecoder(actor), batch_of([prompt], index=[row]), sampling, SEED, tokenizer, ends)
            assert alone.responses[0] == together.responses[row]
            assert alone.lengths[0] == together.lengths[row]

    def test_neither_padding_nor_neighbours_change_a_response(self, policy_folders, family):
        tokenizer = load_tokenizer(str(policy_folders[family]))
        actor = load_actor_critic(PolicyConfig(pretrained=str(policy_folders[family])), tokenizer)

        def responses(batch):
            sampling = SamplingConfig(max_new_tokens=10)
            return sample(CachedDecoder(actor), batch, sampling, SEED, tokenizer, actor.eos_token_ids).responses

        together = responses(batch_of(PROMPTS))
        assert responses(batch_of(PROMPTS, extra_left=4)) == together
        assert responses(batch_of(PROMPTS[::-1], index=[2, 1, 0])) == together[::-1]
        assert tuple(responses(batch_of([row], index=[n]))[0] for n, row in enumerate(PROMPTS)) == together


def test_rows_that_have_ended_are_left_out_of_convolutions_too(policy_folder):
    """Layers of another kind than attention hold a state of each row as well."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    tokenizer = load_tokenizer(str(policy_folder))
    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_hidden_layers=3,
        layer_types=["conv", "full_attention", "conv"],
        pad_token_id=1,
    )
    actor = ActorCritic(Lfm2ForCausalLM(config), [1])
    sampling, ends = SamplingConfig(max_new_tokens=10), torch.arange(0, len(tokenizer), 4)
    batch = batch_of([[3, 4, 5]] * 12)
    samples = sample(CachedDecoder(actor), batch, sampling, SEED, tokenizer, ends, keep_logprobs=True)
    assert len(set(samples.lengths.tolist())) > 3
    full = actor.statistics(replace(samples, logprobs=None, entropy=None), sampling).logprobs
    torch.testing.assert_close(full[samples.response_mask], samples.logprobs[samples.response_mask], atol=1e-4, rtol=0)


def test_responses_follow_the_distribution():
    samples, _ = draw([0.5, 0.0, 0.3, 0.2], rows=400, max_new_tokens=50)
    tokens = samples.sequences[:, 1:]
    shares = torch.bincount(tokens.flatten(), minlength=4) / tokens.numel()
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.0, 0.3, 0.2]), atol=0.012, rtol=0)


def test_a_token_of_probability_zero_is_never_drawn_even_at_the_edges():
    class Edges(SamplingSeed):
        def uniforms(self, index, width):
            return torch.tensor([[0.0], [1 - 2**-24]])

    decoder = FixedDecoder([0.0, 0.0, 0.7, 0.3, 0.0])
    samples = sample(decoder, batch_of([[3], [3]]), SamplingConfig(max_new_tokens=1), Edges(base=0), Tokens(), EOS)
    assert samples.sequences[:, 1].tolist() == [2, 3]


def test_the_first_end_of_text_counts_and_nothing_after_it():
    samples, _ = draw([0.0, 0.5, 0.5], rows=50, max_new_tokens=8)
    for tokens, mask in zip(samples.sequences[:, 1:].tolist(), samples.response_mask.tolist(), strict=True):
        length = tokens.index(1) + 1 if 1 in tokens else len(tokens)
        assert mask == [True] * length + [False] * (len(tokens) - length)
        assert set(tokens[length:]) <= {1}  # pad


def test_the_loop_ends_with_its_last_row():
    samples, decoder = draw([0.0, 1.0, 0.0], max_new_tokens=20)
    assert decoder.calls == 1
    assert samples.response_mask.shape == (4, 1)


class Waits(TorchDispatchMode):
    """Counts what would wait for an accelerator: numbers and shapes that come from values."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("patience", [1, 5])
def test_looking_seldom_gives_the_same_samples_and_waits_less(policy_folder, monkeypatch, patience):
    tokenizer = load_tokenizer(str(policy_folder))
    actor = load_actor_critic(PolicyConfig(pretrained=str(policy_folder)), tokenizer)
    actor.lm.config.pad_token_id = tokenizer.pad_token_id  # else transformers looks for no padding
    ends = torch.arange(0, actor.vocabulary, 5)

    def drawn(rows, new_tokens, ends):
        decoder = CachedDecoder(actor, keep_hidden=True)
        batch, sampling = batch_of([[3, 4, 5]] * rows), SamplingConfig(max_new_tokens=new_tokens)
        with Waits() as waits:
            samples = sample(decoder, batch, sampling, SEED, tokenizer, ends, keep_logprobs=True)
        return replace(samples, hidden=decoder.hidden(samples.response_mask.shape[1])), waits.count

    expected, _ = drawn(12, 30, ends)
    assert expected.response_mask.shape[1] < 30
    monkeypatch.setattr("lightning_rarlhf.sampling._patience", lambda _device: patience)
    samples, _ = drawn(12, 30, ends)
    assert samples.responses == expected.responses
    for name in ("sequences", "response_mask"):
        assert torch.equal(getattr(samples, name), getattr(expected, name))
    counts = expected.response_mask
    for name in ("logprobs", "entropy", "hidden"):
        torch.testing.assert_close(getattr(samples, name)[counts], getattr(expected, name)[counts], atol=1e-5, rtol=0)
    nothing_ends = torch.tensor([actor.vocabulary])
    few, many = (drawn(2, new_tokens, nothing_ends)[1] for new_tokens in (1, 21))
    assert many - few == 20 // patience


def test_the_last_token_costs_no_further_pass():
    _, decoder = draw([1.0, 0.0], max_new_tokens=7)
    assert decoder.calls == 7


def test_minimum_length_is_of_new_tokens():
    samples, _ = draw([0.1, 0.9], rows=20, max_new_tokens=6, min_new_tokens=3)
    assert (samples.lengths >= 4).all()  # three tokens, then the end
    assert (samples.lengths == 4).any()


def test_top_k_and_temperature_reach_the_draw():
    samples, _ = draw([0.4, 0.0, 0.35, 0.25], rows=50, max_new_tokens=10, top_k=2)
    assert set(samples.sequences[:, 1:].flatten().tolist()) == {0, 2}
    cold, _ = draw([0.4, 0.0, 0.35, 0.25], rows=50, max_new_tokens=10, temperature=0.01)
    assert set(cold.sequences[:, 1:].flatten().tolist()) == {0}


def test_seed_iteration_and_draw_each_matter():
    index = torch.arange(2)
    seeds = [
        SamplingSeed(base=1),
        SamplingSeed(base=2),
        SamplingSeed(base=1, iteration=1),
        SamplingSeed(base=1, draw=1),
    ]
    rows = {tuple(seed.uniforms(index, 4).flatten().tolist()) for seed in seeds}
    assert len(rows) == 4
    assert torch.equal(seeds[0].uniforms(index, 4), SamplingSeed(base=1).uniforms(index, 4))
    assert torch.equal(seeds[0].uniforms(index, 4), seeds[0].uniforms(index, 9)[:, :4])  # a prefix, whatever the length


def test_finish_reasons_tell_a_cut_response_from_one_that_ended():
    samples, _ = draw([0.6, 0.4], rows=30, max_new_tokens=2)
    expected = ["stop" if 1 in row else "length" for row in samples.sequences[:, 1:].tolist()]
    assert list(finish_reasons(samples, EOS)) == expected
    assert {"stop", "length"} == set(expected)


def test_responses_are_decoded_without_the_end_of_text_token(policy_folder):
    tokenizer = load_tokenizer(str(policy_folder))
    decoder = FixedDecoder([0.0, 0.3, 0.0, 0.4, 0.3])
    samples = sample(decoder, batch_of([[3]] * 9), SamplingConfig(max_new_tokens=6), SEED, tokenizer, EOS)
    assert not any("<eos>" in response for response in samples.responses)
    assert any(samples.response_mask.sum(1) < 6)


def test_prompt_and_response_must_fit_the_context():
    def model(limit: int | None) -> SimpleNamespace:
        return SimpleNamespace(context_length=limit, context_reason="")

    require_room(model(64), 32, 32)
    require_room(model(None), 10**6, 48)
    with pytest.raises(ModelError, match=r"33 prompt tokens \+ max_new_tokens=32 .* the model's context of 64 tokens;"):
        require_room(model(64), 33, 32)


def test_a_sentence_piece_response_keeps_the_space_before_its_first_word(policy_folder):
    """The tiny tokenizer writes spaces as SentencePiece does: decoded alone, a response loses its first one."""
    tokenizer = load_tokenizer(str(policy_folder))
    samples = sample(
        FixedDecoder([0.0] * 3 + [1.0]), batch_of([[5, 6]]), SamplingConfig(max_new_tokens=2), SEED, tokenizer, EOS
    )
    assert tokenizer.decode([3, 3]) == "good good"
    assert samples.responses == (" good good",)


def test_the_exempt_token_alone_escapes_a_ban_whatever_the_filter():
    samples, _ = draw([0.2, 0.5, 0.3], rows=30, max_new_tokens=4, min_new_tokens=4, top_k=3)
    assert (samples.lengths == 4).all()
    assert 1 not in samples.sequences[:, 1:]


def test_kept_logprobs_are_those_of_the_distribution_that_was_drawn_from(policy_folder):
    model = load_actor_critic(PolicyConfig(pretrained=str(policy_folder)), load_tokenizer(str(policy_folder)))
    sampling = SamplingConfig(max_new_tokens=6, min_new_tokens=2, temperature=0.7, top_p=0.9)
    samples = sample(
        CachedDecoder(model), batch_of(PROMPTS), sampling, SEED, Tokens(), model.eos_token_ids, keep_logprobs=True
    )
    expected = model.response_logprobs(samples, sampling) * samples.response_mask
    assert samples.logprobs is not None
    torch.testing.assert_close(samples.logprobs, expected.detach(), atol=1e-5, rtol=0)
    assert samples.select(torch.tensor([2, 0])).logprobs.tolist() == samples.logprobs[[2, 0]].tolist()


def test_logprobs_are_not_kept_unasked():
    assert draw([0.5, 0.25, 0.25])[0].logprobs is None


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_does_not_take_the_cache_away(policy_folders, family):
    drawn = []
    for checkpointing in (False, True):
        folder = str(policy_folders[family])
        tokenizer = load_tokenizer(folder)
        config = PolicyConfig(pretrained=folder, gradient_checkpointing=checkpointing)
        actor = load_actor_critic(config, tokenizer).train()
        batch = batch_of(PROMPTS)
        sampling = SamplingConfig(max_new_tokens=8)
        samples = sample(CachedDecoder(actor), batch, sampling, SamplingSeed(base=1), tokenizer, actor.eos_token_ids)
        drawn.append(samples.sequences.tolist())
    assert drawn[0] == drawn[1]


def test_hidden_states_are_trusted_in_float32_only(policy_folder):
    tokenizer = load_tokenizer(str(policy_folder))
    actor = load_actor_critic(PolicyConfig(pretrained=str(policy_folder)), tokenizer)
    assert actor.samples_exactly
    with torch.autocast("cpu", torch.bfloat16):
        assert not actor.samples_exactly
    actor.lm.bfloat16()
    assert not actor.samples_exactly
    assert CachedDecoder(actor).hidden(1) is None


class Casts(TorchDispatchMode):
    """Counts how often one weight is cast."""

    def __init__(self, weight):
        super().__init__()
        self.weight, self.count = weight, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() == self.weight.data_ptr():
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_under_autocast_weights_are_cast_once_a_batch_and_no_copy_outlives_it(policy_folder):
    tokenizer = load_tokenizer(str(policy_folder))
    actor = load_actor_critic(PolicyConfig(pretrained=str(policy_folder)), tokenizer)
    weight = actor.lm.transformer.h[0].mlp.c_fc.weight

    def drawn(steps):
        sampling = SamplingConfig(max_new_tokens=steps, min_new_tokens=steps)
        return sample(CachedDecoder(actor), batch_of(PROMPTS), sampling, SEED, tokenizer, actor.eos_token_ids)

    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):  # as Lightning has it
        with Casts(weight) as casts:
            before = drawn(5)
        assert casts.count == 1
        with torch.no_grad():
            actor.lm.get_output_embeddings().weight.neg_()
        after = drawn(5)
    assert not torch.equal(before.sequences, after.sequences)  # nothing stale is left
