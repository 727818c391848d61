"""Write a policy as an ordinary Hugging Face folder, and read it back before calling it written."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.policy import ActorCritic
from lightning_rarlhf.policy_loading import VALUE_HEAD_FILE

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_GREEDY_TOKENS = 16


def export_policy(actor: ActorCritic, tokenizer: PreTrainedTokenizerBase, folder: Path, *, with_critic: bool) -> None:
    """Save model and tokenizer into `folder`, replacing what is there only once the copy is proven.

    The copy is reloaded with plain `AutoModelForCausalLM` and must continue a few prompts with the same greedy tokens.

    Args:
        actor: the policy with its critic.
        tokenizer: the policy's.
        folder: what to write.
        with_critic: put the value head beside the model; False where it was not trained.

    Raises:
        ModelError: the reloaded copy answers differently; `folder` is left as it was.
    """
    from safetensors.torch import save_file

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        copy = Path(scratch) / folder.name
        actor.lm.save_pretrained(copy)
        tokenizer.save_pretrained(copy)
        if with_critic:
            head = {name: value.detach().cpu().contiguous() for name, value in actor.value_head.state_dict().items()}
            save_file(head, copy / VALUE_HEAD_FILE)
        _require_same_answers(actor.lm, copy)
        if folder.exists():
            shutil.move(folder, Path(scratch) / "replaced")
        shutil.move(copy, folder)


def _require_same_answers(lm: PreTrainedModel, copy: Path) -> None:
    from transformers import AutoModelForCausalLM

    reloaded = AutoModelForCausalLM.from_pretrained(
        copy, dtype=lm.dtype, attn_implementation=lm.config._attn_implementation
    )
    prompts = _prompts(int(lm.config.get_text_config().vocab_size)).to(lm.device)
    expected = _greedy(lm, prompts)
    got = _greedy(reloaded.eval().to(device=lm.device), prompts)
    if not torch.equal(expected, got):
        differing = int((expected != got).any(dim=1).sum())
        raise ModelError(
            f"export to {copy.name}: the reloaded copy continues {differing} of {len(prompts)} prompts differently; "
            "nothing was replaced"
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
