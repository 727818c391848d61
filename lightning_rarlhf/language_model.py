"""A causal language model as trunk and head, so that logits are made for the tokens that are asked for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_rarlhf.config import SamplingConfig
from lightning_rarlhf.data_types import Samples
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.functional.logprobs import chunk_of, token_logprobs
from lightning_rarlhf.functional.sequences import position_ids
from lightning_rarlhf.layers.blocks import blocks_of, instead, same_states
from lightning_rarlhf.layers.cpu_attention import attend_well_on_cpu
from lightning_rarlhf.layers.cpu_linear import multiply_by_onednn
from lightning_rarlhf.layers.frozen_layers import FrozenLayers, copy_sharing_frozen
from lightning_rarlhf.layers.fused_gelu import fuse_gelu
from lightning_rarlhf.layers.last_block import LastBlock, last_block, reading_last
from lightning_rarlhf.layers.plain_logits import cap_of, require_plain_logits
from lightning_rarlhf.layers.rotary_angles import same_angles_up_to

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_PLAIN = SamplingConfig()  # temperature 1, no filter: the log-probabilities of maximum likelihood


class LanguageModel(nn.Module):
    """A causal language model cut in two, trunk and head, so that logits are made for response tokens only.

    Dropout is off in every pass, sampling and gradient passes alike: the probability ratios of the first PPO epoch are
    then 1, up to rounding. (The authors' code samples with dropout on.)

    Attributes:
        lm: the transformers model, in eval mode.
        eos_token_ids: i64 [n], tokens that end a response.
        frozen: the lower layers that do not train; None = there are none.
    """

    eos_token_ids: Tensor
    _last_block: LastBlock | None = None
    """what may read fewer columns; a tuple, so that its parts are no second children"""

    def __init__(self, lm: PreTrainedModel, eos_token_ids: list[int], frozen_layers: int = 0) -> None:
        super().__init__()
        self.frozen = FrozenLayers(lm, frozen_layers) if frozen_layers else None
        self.lm = lm.eval()
        fuse_gelu(self.lm)
        multiply_by_onednn(self.lm)
        attend_well_on_cpu()
        self.lm.base_model.warn_if_padding_and_no_attention_mask = _not_padded
        self.register_buffer("eos_token_ids", torch.tensor(eos_token_ids, dtype=torch.int64), persistent=False)
        _check_split(self)
        self._last_block = _cuttable(self)
        if lm.device.type != "meta":
            self.require_separable()

    @property
    def device(self) -> torch.device:
        return self.eos_token_ids.device

    @property
    def hidden_size(self) -> int:
        return int(self.lm.get_output_embeddings().weight.shape[1])

    @property
    def context_length(self) -> int | None:
        """Tokens that the model can read, and says the same of whatever else is in the batch; None = without limit."""
        limits = (self._positions, same_angles_up_to(self.lm.config))
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def context_reason(self) -> str:
        """For a message, after the limit: why it is less than the architecture's, "" where it is not."""
        limit = same_angles_up_to(self.lm.config)
        if limit is None or (self._positions is not None and limit >= self._positions):
            return ""
        return " (in longer texts rotary angles, and so log-probabilities, depend on what else is in the batch)"

    @property
    def _positions(self) -> int | None:
        limit = getattr(self.lm.config.get_text_config(), "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def vocabulary(self) -> int:
        """Tokens that the logits are of."""
        return int(self.lm.config.get_text_config().vocab_size)

    def train(self, mode: bool = True) -> LanguageModel:
        """Stay in eval mode, so that no dropout is ever on."""
        super().train(False)
        return self

    def trunk(self, input_ids: Tensor, attention_mask: Tensor, *, read: int | None = None) -> Tensor:
        """Last hidden states of left-padded sequences: [B, S], bool [B, S] → [B, S, H].

        Args:
            input_ids: i64 [B, S].
            attention_mask: bool [B, S].
            read: only the last `read` columns of the result are looked at, the others may hold anything; None = all.
        """
        with _recomputing(self.lm), self.reading(read):
            output = self.lm.base_model(
                input_ids=input_ids,
                attention_mask=attention_mask.long(),
                position_ids=position_ids(attention_mask),
                use_cache=False,
            )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def reading(self, columns: int | None) -> AbstractContextManager[None]:
        """For forward passes of which only the last `columns` columns are read: does nothing for the others in vain."""
        # what a checkpointed block computes again in the backward pass must be what it computed the first time
        recomputes = self.lm.is_activation_checkpointing and torch.is_grad_enabled()
        if columns is None or recomputes or self._last_block is None:
            return nullcontext()
        return reading_last(self._last_block, columns)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states: [..., H] → [..., V]."""
        logits: Tensor = self.lm.get_output_embeddings()(hidden)
        cap = cap_of(self.lm)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @property
    def head_is_product(self) -> bool:
        """Whether `head` is the float32 product with the output layer's rows: no bias, no cap, no adapter."""
        layer = self.lm.get_output_embeddings()
        plain = isinstance(layer, nn.Linear) and getattr(layer, "bias", None) is None
        return plain and layer.weight.dtype == torch.float32 and cap_of(self.lm) is None

    @torch.no_grad()
    def frozen_states(self, sequences: Tensor, attention_mask: Tensor) -> Tensor | None:
        """Hidden states that leave the frozen layers, [B, S, H], for any number of passes; None without such layers."""
        if self.frozen is None:
            return None
        with self.frozen.alone() as states:
            self.trunk(sequences, attention_mask)
        return states[0]

    @torch.no_grad()
    def require_separable(self) -> None:
        """Refuse to freeze the lower layers of an architecture that cannot be run from above them.

        Raises:
            ModelError: naming the architecture.
        """
        if self.frozen is None:
            return
        ids = torch.arange(3, device=self.device)[None] % 2
        mask = torch.ones_like(ids, dtype=torch.bool)
        self.frozen.require_separable(partial(self.trunk, ids, mask), type(self.lm).__name__)

    def twin(self) -> LanguageModel:
        """The same distribution in a network of its own, but for the frozen layers' weights, which both have."""
        assert self.frozen is not None
        lm = copy_sharing_frozen(self.lm)
        return LanguageModel(lm, self.eos_token_ids.tolist(), self.frozen.count)

    def above(self, frozen_states: Tensor | None) -> AbstractContextManager[None]:
        """For forward passes over the sequences that `frozen_states` are of: they begin above the frozen layers.

        Nothing changes where there are no such states, or no such layers.
        """
        return nullcontext() if frozen_states is None or self.frozen is None else self.frozen.skipped(frozen_states)

    def before_responses(
        self, sequences: Tensor, attention_mask: Tensor, response_length: int, frozen_states: Tensor | None = None
    ) -> Tensor:
        """Hidden states that predict the last `response_length` = T tokens: → [B, T, H].

        Columns in which no row has a token are not read; where they are response columns, the result is 0.
        """
        start = sequences.shape[1] - response_length - 1
        first, end = _occupied(attention_mask, start)
        with self.above(None if frozen_states is None else frozen_states[:, first:end]):
            hidden = self.trunk(sequences[:, first:end], attention_mask[:, first:end], read=max(1, end - start))
        hidden = hidden[:, start - first : -1]
        return nn.functional.pad(hidden, (0, 0, 0, sequences.shape[1] - end))

    def token_logprobs(self, hidden: Tensor, tokens: Tensor, mask: Tensor, sampling: SamplingConfig) -> Tensor:
        """log π of `tokens` [B, T] from the hidden states that predict them; f32 [B, T], 0 where nothing counts."""
        chunk = chunk_of(self.vocabulary, with_gradients=torch.is_grad_enabled())
        return token_logprobs(hidden, tokens, self.head, sampling, self.eos_token_ids, mask=mask, chunk=chunk)

    def response_logprobs(self, samples: Samples, sampling: SamplingConfig) -> Tensor:
        """log π(a_t | s_t) of every response token; f32 [B, T]."""
        width = samples.response_mask.shape[1]
        hidden = self.before_responses(samples.sequences, samples.attention_mask, width, samples.frozen_states)
        return self.token_logprobs(hidden, samples.sequences[:, -width:], samples.response_mask, sampling)

    def text_logprobs(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """log π(x_t | x_<t), temperature 1 and no filter, of every token but each text's first; f32 [B, S − 1]."""
        hidden = self.trunk(input_ids, attention_mask)[:, :-1]
        return token_logprobs(hidden, input_ids[:, 1:], self.head, _PLAIN, self.eos_token_ids)


def _occupied(attention_mask: Tensor, at_most: int) -> tuple[int, int]:
    """First column in which any row has a token, but `at_most` that, and the column after the last such."""
    columns = attention_mask.any(dim=0).nonzero().squeeze(1)
    if not len(columns):  # a process whose share of a minibatch is empty
        return at_most, attention_mask.shape[1]
    first, last = torch.stack([columns[0], columns[-1]]).tolist()
    return min(first, at_most), last + 1


def _recomputing(lm: PreTrainedModel) -> AbstractContextManager[None]:
    """Have checkpointed blocks computed again in the backward pass, for one forward pass with gradients.

    Not by their `training`, for which transformers looks: it also switches dropout on in some (OPT's). And not while
    sampling, where such a block would silently do without the key-value cache.
    """
    wanted = lm.is_activation_checkpointing and torch.is_grad_enabled()
    again = partial(partial, checkpoint, use_reentrant=False, preserve_rng_state=False)
    return instead(blocks_of(lm) if wanted else [], again)


def _not_padded(*_: object) -> None:
    """In place of transformers' look for pad tokens in passes without a mask, of which every sampling step is one.

    It waits for the device, and warns of padding where a row has ended.
    """


@torch.no_grad()
def _check_split(model: LanguageModel) -> None:
    """Refuse an architecture whose logits are more than head(trunk(x)): every log-probability would be wrong."""
    if model.lm.device.type == "meta":
        return
    ids = torch.arange(2, device=model.lm.device)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    direct = model.lm(input_ids=ids, attention_mask=mask.long()).logits
    split = model.head(model.trunk(ids, mask))
    if not direct.isfinite().all():
        raise ModelError(
            f"{model.lm.name_or_path}: its logits are not finite: its weights hold NaN or infinities, or overflow in "
            f"{str(direct.dtype).removeprefix('torch.')}; give another copy or an earlier checkpoint"
        )
    require_plain_logits(model.lm, model.lm.name_or_path)
    if not torch.allclose(direct.float(), split.float(), rtol=1e-2, atol=1e-2):
        name = f"{model.lm.name_or_path}: {type(model.lm).__name__}"
        raise ModelError(f"{name} changes its logits after the output layer; this architecture is not supported")


@torch.no_grad()
def _cuttable(model: LanguageModel) -> LastBlock | None:
    """As much of the last block as gives the same hidden states when it reads their columns only."""
    if model.lm.device.type == "meta":
        return None
    ids = torch.arange(3, device=model.lm.device)[None] % 2
    mask = torch.ones_like(ids, dtype=torch.bool)
    whole = model.trunk(ids, mask)
    for block in last_block(model.lm):
        try:
            with reading_last(block, 2):
                cut = model.trunk(ids, mask)
        # parts with another signature, as some mixtures of experts have
        except (TypeError, RuntimeError, AttributeError, IndexError):
            continue
        if same_states(whole[:, 1:], cut[:, 1:]):
            return block
    return None
