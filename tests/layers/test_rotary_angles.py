"""What rotary angles that depend on a text's length do to log-probabilities, and how long a text may therefore be."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config

from lightning_rarlhf.cached_decoding.cached_decoder import CachedDecoder
from lightning_rarlhf.config import SamplingConfig
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.layers.rotary_angles import same_angles_up_to
from lightning_rarlhf.policy import ActorCritic
from lightning_rarlhf.rewards.classifier import text_limit
from lightning_rarlhf.sampling import SamplingSeed, sample
from tests.quiet_trainer import quiet_trainer
from tests.test_ppo_module import Prompts, fit, module_of
from tests.test_sampling import Tokens, batch_of
from tests.tiny_models import save_policy

LIMIT = 8
PHI3 = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}


def longrope(long: float = 8.0) -> dict:
    rope = {"rope_type": "longrope", "rope_theta": 100.0, "factor": 8.0}
    return rope | {"short_factor": [1.0] * 4, "long_factor": [long] * 4, "original_max_position_embeddings": LIMIT}


def llama(rope: dict) -> LlamaConfig:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    return LlamaConfig(vocab_size=17, bos_token_id=1, eos_token_id=1, rope_parameters=rope, **shape)


def actor_of(rope: dict) -> ActorCritic:
    torch.manual_seed(0)
    lm = LlamaForCausalLM(llama(rope))
    with torch.no_grad():  # so that attention is to few tokens, and their places are seen
        for parameter in lm.parameters():
            parameter.mul_(8.0) if parameter.dim() > 1 else None
    return ActorCritic(lm, [1])


def off_by(actor: ActorCritic, max_new_tokens: int) -> tuple[float, float]:
    """Largest difference of sampling's log-probabilities, and of one row read alone, from the whole batch's."""
    sampling = SamplingConfig(max_new_tokens=max_new_tokens, min_new_tokens=max_new_tokens)
    seed, batch = SamplingSeed(base=1), batch_of([[3, 4], [5, 6, 7, 8]])
    drawn = sample(CachedDecoder(actor), batch, sampling, seed, Tokens(), actor.eos_token_ids, keep_logprobs=True)
    with torch.no_grad():
        whole = actor.response_logprobs(drawn, sampling)
        alone = actor.response_logprobs(drawn.select(torch.tensor([0])), sampling)
    return float((drawn.logprobs - whole).abs().max()), float((alone - whole[:1]).abs().max())


def test_up_to_the_limit_sampling_and_any_batch_agree_and_beyond_neither():
    actor = actor_of(longrope())
    assert actor.context_length == LIMIT
    assert max(off_by(actor, LIMIT - 4)) < 1e-5
    assert min(off_by(actor, LIMIT - 3)) > 1e-2


def test_equal_factors_turn_texts_of_any_length_alike():
    actor = actor_of(longrope(long=1.0))
    assert actor.context_length == 2048
    assert actor.context_reason == ""
    assert max(off_by(actor, 12)) < 1e-5


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (llama({"rope_type": "default", "rope_theta": 1e4}), None),
        (llama({"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}), None),
        (llama({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}), 2048),
        (llama(longrope()), LIMIT),
        (Phi3Config(hidden_size=16, num_attention_heads=2, rope_parameters=PHI3, pad_token_id=2), 4096),
    ],
    ids=["default", "linear", "dynamic", "longrope", "phi3"],
)
def test_only_some_kinds_have_a_limit(config, limit):
    assert same_angles_up_to(config) == limit


@pytest.mark.parametrize(("long", "limit"), [(8.0, LIMIT), (1.0, 512)])
def test_a_classifier_reads_no_more_than_it_scores_alike(long, limit):
    model, tokenizer = SimpleNamespace(config=llama(longrope(long)), named_modules=list), SimpleNamespace()
    tokenizer.model_max_length = 512
    assert text_limit(model, tokenizer) == limit


def test_it_may_be_a_layers():
    config = llama({"rope_type": "default", "rope_theta": 1e4})
    config.rope_parameters = {"full_attention": longrope(), "sliding_attention": {"rope_type": "default"}}
    assert same_angles_up_to(config) == LIMIT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = save_policy(tmp_path_factory.mktemp("longrope"), "llama")
    actor_of(longrope()).lm.save_pretrained(folder)
    return folder


def test_kl_begins_at_0_at_the_limit(folder, tmp_path):
    module = module_of(folder, sampling=SamplingConfig(max_new_tokens=LIMIT - 2, min_new_tokens=LIMIT - 2))
    watch, _ = fit(module, tmp_path, batches=1)
    rollout = watch.outputs[0]["rollout"]
    assert rollout.samples.attention_mask.sum(dim=1).max() == LIMIT
    assert rollout.kl.abs().max() < 1e-5


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_longer_texts_are_refused_also_of_loaders_that_do_not_tell_their_lengths(folder, tmp_path, stage):
    module = module_of(folder, sampling=SamplingConfig(max_new_tokens=LIMIT - 1))
    run = getattr(quiet_trainer(tmp_path, max_epochs=1), stage)
    with pytest.raises(ModelError, match=r"2 prompt tokens .*=7 do not fit .* of 8 tokens \(in longer"):
        run(module, datamodule=Prompts(batches=1))


def test_a_reference_must_have_room_too(policy_folders, folder, tmp_path):
    sampling = SamplingConfig(max_new_tokens=LIMIT - 1)
    with pytest.raises(ModelError, match="do not fit into the reference's context of 8 tokens"):
        fit(module_of(policy_folders["llama"], reference=str(folder), sampling=sampling), tmp_path, batches=1)


def test_padding_needs_no_room(policy_folder):
    """Of a loader that pads wider than its longest text."""
    module = module_of(policy_folder)
    allowed, asked = 7, []

    def require(longest):
        asked.append(longest)
        if longest > allowed:
            raise ModelError("too long")

    module._require_room_for = require
    module.on_validation_batch_start(batch_of([[3] * 7]), 0)
    wide = batch_of([[3] * 7, [4] * 12])
    with pytest.raises(ModelError):
        module.on_validation_batch_start(wide, 0)
    module.on_validation_batch_start(wide.select(torch.tensor([0])), 0)
    assert asked == [7, 12, 12, 12, 7]
