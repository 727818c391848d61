"""The sampling loop: one cached forward pass per token, whatever produces the logits.

Every prompt has random numbers of its own, made from (seed, iteration, prompt index, draw). A response therefore
depends neither on its neighbours in the batch, nor on the batch size, nor on the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from lightning_rarlhf.config import SamplingConfig
from lightning_rarlhf.data_types import PromptBatch, Samples
from lightning_rarlhf.errors import ModelError, NumericalError, first_few
from lightning_rarlhf.functional.logprobs import eos_ban, warp
from lightning_rarlhf.functional.next_token import NextToken
from lightning_rarlhf.functional.sequences import spread_rows
from lightning_rarlhf.language_model import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class SamplingSeed:
    """Names one draw of responses; equal seeds and prompts give equal responses."""

    base: int
    """the run's seed"""
    iteration: int = 0
    """0-based; 0 for evaluation"""
    draw: int = 0
    """0-based number of the completion, where a prompt gets several"""

    def uniforms(self, index: Tensor, width: int) -> Tensor:
        """f32 [B, width] in [0, 1): row b depends on this seed and on index[b] alone (Philox, counter-based)."""
        rows = [
            np.random.Generator(
                np.random.Philox(key=self.base % 2**64, counter=[0, self.draw, self.iteration, int(number) % 2**64])
            ).random(width, dtype=np.float32)
            for number in index.tolist()
        ]
        return torch.from_numpy(np.stack(rows)).to(index.device)


class Decoder(Protocol):
    """Anything that can say the next token's logits; decoding-time methods combine several models behind it."""

    def start(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Read left-padded prompts [B, P]; return logits [B, V] of the first response token."""
        ...

    def advance(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """Read one more token a row, [B]; the mask [B, P + t] now covers it. Return the next logits [B, V]."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these of the rows alone, i64 [b], in this order."""
        ...


@contextmanager
def casting_once(device: torch.device) -> Iterator[None]:
    """Under autocast, keep the weights' bfloat16 copies from step to step; Lightning has them made at every use.

    They are dropped at the end, before anything can have moved the weights.
    """
    kind = device.type
    if not torch.is_autocast_enabled(kind):
        yield
        return
    with torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), cache_enabled=True):
        try:
            yield
        finally:
            torch.clear_autocast_cache()


@torch.no_grad()
def sample(
    decoder: Decoder,
    batch: PromptBatch,
    sampling: SamplingConfig,
    seed: SamplingSeed,
    tokenizer: PreTrainedTokenizerBase,
    eos_token_ids: Tensor,
    *,
    keep_logprobs: bool = False,
) -> Samples:
    """Draw one response a prompt.

    Stops when every row has ended, so T, the longest response, is ≤ `max_new_tokens`; rows that have ended are left out
    whenever they are half of those that are read. On an accelerator both are looked at every few steps only. Columns
    after a row's first end-of-text token hold the pad token and are False in the response mask.

    Args:
        decoder: says each next token's logits.
        batch: the prompts.
        sampling: filters the decoder's distribution; see `warp`.
        seed: of the random numbers.
        tokenizer: decodes the responses.
        eos_token_ids: i64 [n], tokens that end a response.
        keep_logprobs: fill `Samples.logprobs` and `Samples.entropy`, where a forward pass would give them again at a
            cost, or would not give them at all.

    Raises:
        NumericalError: the decoder's logits are no distribution, for the prompts that are named.
    """
    uniforms = seed.uniforms(batch.index, sampling.max_new_tokens)
    patience = _patience(batch.input_ids.device)
    pad = _pad_id(tokenizer)
    mask = batch.attention_mask
    rows = torch.arange(len(batch), device=mask.device)  # of the batch that are still read
    alive = torch.ones_like(rows, dtype=torch.bool)
    broken = torch.zeros_like(alive)
    spread = partial(spread_rows, width=len(batch))
    drawn: list[Tensor] = []
    counted: list[Tensor] = []
    logprobs: list[Tensor] = []
    entropies: list[Tensor] = []
    with casting_once(mask.device):
        logits = decoder.start(batch.input_ids, mask)
        for step in range(sampling.max_new_tokens):
            following = NextToken(_warped(logits, step, sampling, eos_token_ids))
            token = following.draw(uniforms[rows, step])
            broken = broken | spread(alive & (token < 0), rows, empty=False)
            token = token.clamp(min=0)
            if keep_logprobs:
                logprob, entropy = following.statistics(token)
                logprobs.append(spread(logprob.where(alive, 0.0), rows, empty=0.0))
                entropies.append(spread(entropy.where(alive, 0.0), rows, empty=0.0))
            token = token.where(alive, pad)
            drawn.append(spread(token, rows, empty=pad))
            counted.append(spread(alive, rows, empty=False))
            mask = torch.cat([mask, alive[:, None]], dim=1)
            alive = alive & ~torch.isin(token, eos_token_ids)
            if step + 1 == sampling.max_new_tokens:
                break
            if (step + 1) % patience == 0:
                left = int(alive.sum())  # waits for the device, which else runs ahead
                if not left:
                    break
                if 2 * left <= len(rows):
                    kept = alive.nonzero().squeeze(1)
                    decoder.keep(kept)
                    rows, mask, token, alive = rows[kept], mask[kept], token[kept], alive[kept]
            logits = decoder.advance(token, mask)
    _require_drawn(broken, batch)  # once, not at every step: looking waits for the device
    counts = torch.stack(counted, dim=1)
    width = int(counts.any(dim=0).sum())  # the steps before it was seen that every row has ended fall away
    tokens, counts = torch.stack(drawn[:width], dim=1), counts[:, :width]
    return Samples(
        batch=batch,
        sequences=torch.cat([batch.input_ids, tokens], dim=1),
        response_mask=counts,
        responses=tuple(decode_responses(batch, tokens, counts, tokenizer)),
        logprobs=torch.stack(logprobs[:width], dim=1) if keep_logprobs else None,
        entropy=torch.stack(entropies[:width], dim=1) if keep_logprobs else None,
    )


def _patience(device: torch.device) -> int:
    """Steps between two looks at which rows have ended: an accelerator has to be waited for."""
    return 1 if device.type == "cpu" else 8


def _warped(logits: Tensor, step: int, sampling: SamplingConfig, eos_token_ids: Tensor) -> Tensor:
    steps = torch.full((len(logits),), step, device=logits.device)
    return warp(logits, sampling, ban=eos_ban(steps, logits.shape[-1], eos_token_ids, sampling))


def _require_drawn(broken: Tensor, batch: PromptBatch) -> None:
    if broken.any():
        rows = broken.nonzero().flatten()
        raise NumericalError(
            f"the logits are not finite for {len(rows)} of {len(batch)} prompts "
            f"(prompts {first_few(batch.index[rows].tolist())}); the policy's weights or their precision are broken",
            rows=rows.tolist(),
        )


def decode_responses(batch: PromptBatch, tokens: Tensor, mask: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Text of each response without special tokens, such that prompt + response is the text of all the tokens.

    Decoded by itself a response may lose the space before its first word, as SentencePiece tokenizers do; so prompt and
    response are decoded together, and the prompt is taken off. Padding is cut by the masks, not by token id.
    """

    def decode(rows: list[list[int]]) -> list[str]:
        texts: list[str] = tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return texts

    prompts = [row[keep].tolist() for row, keep in zip(batch.input_ids.cpu(), batch.attention_mask.cpu(), strict=True)]
    replies = [row[keep].tolist() for row, keep in zip(tokens.cpu(), mask.cpu(), strict=True)]
    before = decode(prompts)
    together = decode([prompt + reply for prompt, reply in zip(prompts, replies, strict=True)])
    alone = decode(replies)
    return [
        # a prompt that was cut inside a character decodes to something else than the text begins with
        whole[len(prompt) :] if whole.startswith(prompt) else reply
        for prompt, whole, reply in zip(before, together, alone, strict=True)
    ]


def require_room(model: LanguageModel, prompt_tokens: int, max_new_tokens: int, *, name: str = "model") -> None:
    """Refuse prompts and responses that do not fit into a model's context; texts are prompts without a response.

    Raises:
        ModelError: with the three numbers.
    """
    limit = model.context_length
    if limit is not None and prompt_tokens + max_new_tokens > limit:
        raise ModelError(
            f"{prompt_tokens} prompt tokens + max_new_tokens={max_new_tokens} do not fit into the {name}'s context of "
            f"{limit} tokens{model.context_reason}; lower data.prompt_tokens (SFT: data.text_tokens) or "
            "sampling.max_new_tokens"
        )


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    pad = tokenizer.pad_token_id
    if not isinstance(pad, int):
        raise ModelError("the tokenizer has no pad token; load it by lightning_rarlhf.loading.tokenizer.load_tokenizer")
    return pad


def finish_reasons(samples: Samples, eos_token_ids: Tensor) -> Sequence[str]:
    """`stop` for a response that ended by itself, `length` for one that was cut at the maximum."""
    width = samples.response_mask.shape[1]
    ended = (torch.isin(samples.sequences[:, -width:], eos_token_ids) & samples.response_mask).any(dim=1)
    return ["stop" if stop else "length" for stop in ended.tolist()]
