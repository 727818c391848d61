"""From a hub id or a folder to a network in memory: the policy with its critic, and any frozen language model."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_rarlhf.config import PolicyConfig
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.loading.empty_policy import causal_configuration, empty_policy
from lightning_rarlhf.loading.hub import base_of_adapter
from lightning_rarlhf.loading.lora import START, add_adapter
from lightning_rarlhf.loading.own_code import load_pretrained
from lightning_rarlhf.policy import ActorCritic
from lightning_rarlhf.terminal.plain_text import first_line

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

VALUE_HEAD_FILE = "value_head.safetensors"
"""Written beside an exported policy; a folder that has it starts with this critic."""

_NF4_BLOCK = 64
"""weights that bitsandbytes packs together; a layer of fewer inputs cannot be multiplied with"""


def load_causal_lm(config: PolicyConfig, device: torch.device | None = None) -> PreTrainedModel:
    """The network that `config` starts from: any `AutoModelForCausalLM` by hub id or folder, in the dtype asked for.

    A peft adapter is loaded with its base and merged into it; into quantised weights it cannot be merged without loss,
    so it stays a frozen adapter beside them.

    Args:
        config: what to load; `lora` and `frozen_layers` are for `load_actor_critic`.
        device: where quantised weights are made (they cannot always be moved afterwards); none = the CPU.

    Raises:
        ModelError: nothing there, not a causal language model, or one of whose weights some are missing.
    """
    causal_configuration(config.pretrained, config.revision)
    base = base_of_adapter(config.pretrained, config.revision)
    if base is None:
        lm = _from_pretrained(config.pretrained, config.revision, config, device)
    else:
        lm = _with_adapter(_from_pretrained(*base, config, device), config)
    if config.gradient_checkpointing:
        lm.activation_checkpointing_enable()
    return lm


def _from_pretrained(
    name: str, revision: str | None, config: PolicyConfig, device: torch.device | None
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {}
    if config.attn_implementation is not None:
        options["attn_implementation"] = config.attn_implementation
    if config.quantization is not None:
        options["quantization_config"] = _quantization(config)
        options["device_map"] = {"": device or torch.device("cpu")}
    options["dtype"] = getattr(torch, config.dtype)
    lm: PreTrainedModel
    lm, loading = load_pretrained(
        AutoModelForCausalLM, name, "a causal language model", revision=revision, output_loading_info=True, **options
    )
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ModelError(
            f"{name}: lacks {len(missing)} of its network's weights, which would be random, {missing[0]} first; give a "
            "complete copy"
        )
    width = int(lm.config.get_text_config().hidden_size)
    if config.quantization == "4bit" and width < _NF4_BLOCK:
        raise ModelError(
            f"{name}: policy.quantization=4bit packs blocks of {_NF4_BLOCK} weights, its layers have {width} inputs; "
            "give --model.policy.quantization 8bit"
        )
    return lm


def _quantization(config: PolicyConfig) -> BitsAndBytesConfig:
    """Weights are multiplied in `config.dtype`; transformers leaves the output layer alone."""
    from transformers import BitsAndBytesConfig

    if config.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, config.dtype),
    )


def _with_adapter(lm: PreTrainedModel, config: PolicyConfig) -> PreTrainedModel:
    """`lm` with the adapter of the folder or hub id `config.pretrained`: merged, or frozen beside quantised weights."""
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        with warnings.catch_warnings():  # peft 0.21 asks for a name that transformers 5 deprecates
            warnings.filterwarnings(
                "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
            )
            adapted = PeftModel.from_pretrained(lm, config.pretrained, adapter_name=START, revision=config.revision)
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        reason = first_line(error)
        raise ModelError(f"{config.pretrained}: not an adapter that fits its base model ({reason})") from error
    if config.quantization is None:
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
        return merged
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


def load_actor_critic(
    config: PolicyConfig, tokenizer: PreTrainedTokenizerBase, device: torch.device | None = None
) -> ActorCritic:
    """The policy of `config` with its critic: the one saved beside it if there is one, a new one otherwise.

    Args:
        config: what to load, and whether to train adapters.
        tokenizer: the policy's.
        device: where quantised weights are made; none = the CPU.

    Raises:
        ModelError: nothing there, a tokenizer that does not fit, adapters for layers that the network does not have, or
            layers to freeze that are not there.
    """
    from safetensors.torch import load_file

    if config.trains_part:
        empty_policy(config)  # refuses what does not fit the architecture before minutes go into its weights
    lm = load_causal_lm(config, device)
    if config.lora is not None:
        add_adapter(lm, config.lora, config.frozen_layers)
    rows = embedding_rows(lm)
    if len(tokenizer) > rows:
        raise ModelError(
            f"{config.pretrained}: its tokenizer has {len(tokenizer)} tokens, its embedding {rows} rows; "
            "resize the embeddings (resize_token_embeddings) and save the model again"
        )
    actor = ActorCritic(lm, end_of_text_ids(lm, tokenizer), config.frozen_layers)
    saved = Path(config.pretrained) / VALUE_HEAD_FILE
    if saved.is_file():
        actor.value_head.load_state_dict(load_file(saved))
    return actor
