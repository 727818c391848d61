"""From a hub id or a folder to a network in memory: the policy with its critic, and any frozen language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_rarlhf.config import PolicyConfig
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.hub import require_model
from lightning_rarlhf.policy import ActorCritic

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VALUE_HEAD_FILE = "value_head.safetensors"
"""Written beside an exported policy; a folder that has it starts with this critic."""


def load_causal_lm(config: PolicyConfig) -> PreTrainedModel:
    """Load any `AutoModelForCausalLM` by hub id or folder, in the dtype asked for.

    Raises:
        ModelError: nothing there, or not a causal language model.
    """
    from transformers import AutoModelForCausalLM

    require_model(config.pretrained, config.revision)
    options = {} if config.attn_implementation is None else {"attn_implementation": config.attn_implementation}
    try:
        lm: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            config.pretrained,
            revision=config.revision,
            dtype=getattr(torch, config.dtype),
            **options,
        )
    except (OSError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{config.pretrained}: not a causal language model that transformers can load ({line})"
        ) from error
    if config.gradient_checkpointing:
        lm.activation_checkpointing_enable()
    return lm


def embedding_rows(lm: PreTrainedModel) -> int:
    """Token ids that the model can read: 0 up to this number."""
    weight = lm.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return int(weight.shape[0])


def end_of_text_ids(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a response: the tokenizer's EOS and those of the model's generation config.

    A configured id beyond the vocabulary is left out: a small model's configuration may carry a large one's default.
    """
    configured = getattr(lm.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    known = {int(token) for token in listed if token is not None and token < embedding_rows(lm)}
    return sorted({int(tokenizer.eos_token_id), *known})


def load_actor_critic(config: PolicyConfig, tokenizer: PreTrainedTokenizerBase) -> ActorCritic:
    """The policy of `config` with its critic: the one saved beside it if there is one, a new one otherwise."""
    from safetensors.torch import load_file

    lm = load_causal_lm(config)
    rows = embedding_rows(lm)
    if len(tokenizer) > rows:
        raise ModelError(
            f"{config.pretrained}: its tokenizer has {len(tokenizer)} tokens, its embedding {rows} rows; "
            "resize the embeddings (resize_token_embeddings) and save the model again"
        )
    actor = ActorCritic(lm, end_of_text_ids(lm, tokenizer))
    saved = Path(config.pretrained) / VALUE_HEAD_FILE
    if saved.is_file():
        actor.value_head.load_state_dict(load_file(saved))
    return actor
