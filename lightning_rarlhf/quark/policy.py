"""A policy that is told how good its response should be: one reward token, put before the prompt.

The tokens can be read but never be drawn: the head's logits stay those of the words, so the policy and its reference
have one vocabulary. Neither the reference nor the reward ever sees such a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.loading.policy_loading import embedding_rows
from lightning_rarlhf.policy import ActorCritic
from lightning_rarlhf.sampling import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NAME = "<|reward_{}|>"
_WORDS = "vocabulary_without_reward_tokens"
"""key of the model's configuration; an exported folder keeps it"""


def reward_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the reward tokens that the tokenizer has, the worst quantile's first; empty if it has none."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    found: list[int] = []
    while _NAME.format(len(found)) in vocabulary:
        found.append(vocabulary[_NAME.format(len(found))])
    return found


class ConditionedPolicy(ActorCritic):
    """An `ActorCritic` that reads a reward token before every text: the best one, unless another is asked for.

    Attributes:
        tokens: i64 [K], ids of the reward tokens, the best quantile's last.
        words: vocabulary of the logits, as before the reward tokens were added.
    """

    tokens: Tensor
    _own: Tensor
    """those among the words' logits, in rows that the embedding had unused; of a size that a compiler can know"""
    _told = False
    """not while the base class checks the bare network"""

    def __init__(self, lm: PreTrainedModel, eos_token_ids: list[int], tokens: list[int], words: int) -> None:
        super().__init__(lm, eos_token_ids)
        self.register_buffer("tokens", torch.tensor(tokens, dtype=torch.int64), persistent=False)
        own = [token for token in tokens if token < words]
        self.register_buffer("_own", torch.tensor(own, dtype=torch.int64), persistent=False)
        self.words = words
        self._told = True

    @property
    def context_length(self) -> int | None:
        """Tokens that the model can read beside the reward token."""
        limit = super().context_length
        return None if limit is None else limit - 1

    @property
    def vocabulary(self) -> int:
        """Tokens that can be drawn."""
        return self.words

    def best(self, rows: int) -> Tensor:
        """i64 [rows], the best quantile's token."""
        return self.tokens[-1:].expand(rows)

    def trunk(self, input_ids: Tensor, attention_mask: Tensor, *, read: int | None = None) -> Tensor:
        """Last hidden states of padded sequences that are told to be of the best quantile; [B, S] → [B, S, H]."""
        if not self._told:
            return super().trunk(input_ids, attention_mask, read=read)
        return self.trunk_told(input_ids, attention_mask, self.best(len(input_ids)), read=read)

    def trunk_told(
        self, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor, *, read: int | None = None
    ) -> Tensor:
        """As `trunk`, each row told its own reward token, i64 [B]."""
        return super().trunk(*prepend(input_ids, attention_mask, tokens), read=read)[:, 1:]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of the words: [..., H] → [..., V]."""
        logits = super().head(hidden)
        if not self._told:
            return logits
        words = logits[..., : self.words]
        return words.index_fill(-1, self._own, -1e4) if len(self._own) else words  # finite: p·log p stays 0, not NaN


class ConditionedDecoder:
    """Tells a decoder each row's reward token, and is otherwise the same decoder."""

    def __init__(self, decoder: Decoder, tokens: Tensor) -> None:
        self._decoder = decoder
        self._tokens = tokens

    def start(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self._decoder.start(*prepend(input_ids, attention_mask, self._tokens))

    def advance(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        return self._decoder.advance(tokens, _longer(attention_mask))

    def keep(self, rows: Tensor) -> None:
        self._decoder.keep(rows)


def prepend(input_ids: Tensor, attention_mask: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Put a token directly before the first counted one of each row, whichever side the padding is on.

    Args:
        input_ids: i64 [B, S].
        attention_mask: bool [B, S]; every row counts at least one token.
        tokens: i64 [B].

    Returns:
        i64 and bool [B, S + 1]; column s of the input is column s + 1 of the output.
    """
    mask = _longer(attention_mask)
    ids = torch.cat([input_ids[:, :1], input_ids], dim=1)
    first = mask.int().argmax(dim=1, keepdim=True)
    return ids.scatter(1, first, tokens[:, None]), mask


def _longer(attention_mask: Tensor) -> Tensor:
    """One more counted column before each row's first one."""
    mask = torch.cat([torch.zeros_like(attention_mask[:, :1]), attention_mask], dim=1)
    return mask.scatter(1, attention_mask.int().argmax(dim=1, keepdim=True), True)


def with_reward_tokens(actor: ActorCritic, tokenizer: PreTrainedTokenizerBase, quantiles: int) -> ConditionedPolicy:
    """Teach a tokenizer and its policy `quantiles` reward tokens, or find those that an earlier run left in them.

    A new token's embedding is drawn around the vocabulary's mean, as wide as the vocabulary, with a fixed seed.
    transformers' `generate` is told never to draw one.

    Raises:
        ModelError: the policy has another number of reward tokens.
    """
    from transformers import AddedToken

    there, rows = reward_tokens(tokenizer), embedding_rows(actor.lm)
    if there and len(there) != quantiles:
        raise ModelError(
            f"the policy has {len(there)} reward tokens, quark.quantiles asks for {quantiles}; set quark.quantiles to "
            f"{len(there)}"
        )
    if not there:
        names = [AddedToken(_NAME.format(number), special=True) for number in range(quantiles)]
        tokenizer.add_tokens(names, special_tokens=True)
        there = reward_tokens(tokenizer)
        _embed(actor.lm, there)
        setattr(actor.lm.config, _WORDS, rows)
    if actor.lm.generation_config is not None:
        actor.lm.generation_config.suppress_tokens = there
    return ConditionedPolicy(actor.lm, actor.eos_token_ids.tolist(), there, int(getattr(actor.lm.config, _WORDS)))


@torch.no_grad()
def _embed(lm: PreTrainedModel, tokens: list[int]) -> None:
    """Give the tokens their rows of the embedding, which grows if it is too small."""
    table = lm.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    mean, spread = table.float().mean(dim=0), table.float().std(dim=0)
    if tokens[-1] >= len(table):
        lm.resize_token_embeddings(tokens[-1] + 1, mean_resizing=False)
        table = lm.get_input_embeddings().weight
        assert isinstance(table, Tensor)
    noise = torch.randn(len(tokens), len(mean), generator=torch.Generator().manual_seed(0))
    table[tokens] = (mean + spread * noise.to(mean.device)).to(table.dtype)
