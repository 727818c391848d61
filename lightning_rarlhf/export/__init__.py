"""Write a policy as an ordinary Hugging Face folder, and read it back before calling it written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lightning_rarlhf.config import PolicyConfig
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.export.adapter import save_adapter
from lightning_rarlhf.export.plain import plain_model
from lightning_rarlhf.loading.hub import base_of_adapter
from lightning_rarlhf.loading.lora import is_adapted
from lightning_rarlhf.loading.model_folder import require_replaceable
from lightning_rarlhf.loading.policy_loading import VALUE_HEAD_FILE
from lightning_rarlhf.one_move import folder_in_one_move, or_say_why
from lightning_rarlhf.policy import ActorCritic
from lightning_rarlhf.records.provenance import write_training

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Form = Literal["merged", "adapter"]
"""A model that stands alone, or the trained adapter that is loaded on top of its base."""

_GREEDY_TOKENS = 16


def export_policy(
    actor: ActorCritic,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    with_critic: bool,
    form: Form = "merged",
    policy: PolicyConfig | None = None,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Save model and tokenizer into `folder`, replacing what is there only once the copy is proven.

    A merged copy is reloaded with plain `AutoModelForCausalLM` and must continue a few prompts with the same greedy
    tokens; where merging rounded (bfloat16, quantised weights), with tokens that the policy finds as good. An adapter's
    file is read back and compared to the bit.

    Args:
        actor: the policy with its critic.
        tokenizer: the policy's.
        folder: what to write; a saved model there is replaced.
        with_critic: put the value head beside the model; False where it was not trained.
        form: the whole model with its adapter merged, or the adapter alone.
        policy: what the policy was loaded from; an adapter's folder names it.
        training: what trained the policy, to be kept beside it (`provenance.write_training`).

    Raises:
        ModelError: the copy is not the policy, or there is no adapter to write; `folder` is left as it was.
        UserError: `folder` holds something that is no saved model.
        WriteError: the disk is full, ...; `folder` is left as it was.
    """
    from safetensors.torch import save_file

    require_replaceable(folder)
    with or_say_why(folder), folder_in_one_move(folder) as copy:
        if form == "adapter":
            _save_adapter(actor.lm, copy, policy)
        else:
            _save_merged(actor.lm, copy)
        tokenizer.save_pretrained(copy)
        if with_critic:
            head = {n: value.detach().cpu().contiguous() for n, value in actor.value_head.state_dict().items()}
            save_file(head, copy / VALUE_HEAD_FILE)
        if training is not None:
            write_training(copy, training)


def _save_adapter(lm: PreTrainedModel, copy: Path, policy: PolicyConfig | None) -> None:
    if policy is None:
        raise ModelError("export as an adapter: the base model's name is not known; export the model merged")
    if base_of_adapter(policy.pretrained, policy.revision) is not None:
        raise ModelError(
            f"export as an adapter: the policy started from another adapter, {policy.pretrained}, and is their sum; "
            "export it merged"
        )
    save_adapter(lm, copy, policy.pretrained, policy.revision)


def _save_merged(lm: PreTrainedModel, copy: Path) -> None:
    changed = is_adapted(lm) or bool(getattr(lm, "is_quantized", False))
    (plain_model(lm) if changed else lm).save_pretrained(copy)
    _require_same_answers(lm, copy, _tolerance(lm) if changed else 0.0)


def _tolerance(lm: PreTrainedModel) -> float:
    """Logits that may differ after merging, in standard deviations of a step's logits; from the rounding of weights."""
    if getattr(lm, "is_quantized", False):
        return 0.25  # 8-bit layers round their inputs too, which the merged copy does not
    return {torch.float32: 1e-3, torch.bfloat16: 0.1}[lm.dtype]


def _require_same_answers(lm: PreTrainedModel, copy: Path, tolerance: float) -> None:
    from transformers import AutoModelForCausalLM

    reloaded = AutoModelForCausalLM.from_pretrained(
        copy,
        dtype=lm.dtype,
        attn_implementation=lm.config._attn_implementation,
        trust_remote_code=type(lm).__module__.startswith("transformers_modules"),  # the same code runs already
    )
    prompts = _prompts(int(lm.config.get_text_config().vocab_size)).to(lm.device)
    got = _greedy(reloaded.eval().to(device=lm.device), prompts)
    wrong = _shortfall(lm, got, prompts.shape[1]) > tolerance
    if wrong.any():
        raise ModelError(
            f"export to {copy.name}: the reloaded copy continues {int(wrong.sum())} of {len(prompts)} prompts "
            "differently; nothing was replaced"
        )


def _prompts(vocabulary: int) -> Tensor:
    """i64 [4, 8], arbitrary token ids spread over the vocabulary."""
    return (torch.arange(32) * 7919 % vocabulary).view(4, 8)


@torch.no_grad()
def _greedy(lm: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Extend [B, S] by the likeliest token, again and again; no cache, so that nothing but the weights is compared."""
    for _ in range(_GREEDY_TOKENS):
        logits = lm(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[:, -1]
        tokens = torch.cat([tokens, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return tokens


@torch.no_grad()
def _shortfall(lm: PreTrainedModel, tokens: Tensor, prompt_tokens: int) -> Tensor:
    """How far, at worst, the tokens [B, S] after the prompt are from `lm`'s own choices; f32 [B], 0 = they are greedy.

    In standard deviations of the step's logits.
    """
    logits = lm(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[:, prompt_tokens - 1 : -1].float()
    chosen = logits.gather(2, tokens[:, prompt_tokens:, None]).squeeze(2)
    shortfall: Tensor = ((logits.amax(dim=2) - chosen) / logits.std(dim=2)).amax(dim=1)
    return shortfall
