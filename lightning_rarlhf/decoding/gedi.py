"""GeDi: a class-conditional language model as discriminator (Krause et al. 2021, arXiv 2009.06367)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsonargparse.typing import ClosedUnitInterval
from torch import Tensor

from lightning_rarlhf.cached_decoding.cached_decoder import CachedDecoder, CachedTrunk
from lightning_rarlhf.config import SamplingConfig
from lightning_rarlhf.decoding.experts import load_expert, require_expert
from lightning_rarlhf.decoding.method import Host, JointDecoder, StepwiseMethod
from lightning_rarlhf.decoding.prefix import Prefix, text_prefix
from lightning_rarlhf.errors import ModelError, UserError
from lightning_rarlhf.functional.decoding import gedi, wanted_logposterior
from lightning_rarlhf.functional.logprobs import token_logprobs
from lightning_rarlhf.functional.sequences import previous_column
from lightning_rarlhf.language_model import LanguageModel
from lightning_rarlhf.number_types import Fraction, Weight
from lightning_rarlhf.sampling import Decoder

_PLAIN = SamplingConfig()


class GeDi(StepwiseMethod):
    """Weights each token by the posterior of the wanted class, which a small conditional model gives by Bayes' rule."""

    def __init__(
        self,
        class_lm: str,
        wanted_code: str,
        unwanted_code: str,
        omega: Weight = 30.0,
        rho: Fraction = 0.2,
        tau: ClosedUnitInterval = 0.8,
    ) -> None:
        """Remember the settings.

        Args:
            class_lm: hub id or folder of a language model that was fitted on texts of both classes, each with its
                class's code before it (`SFTModule` with data.sft_codes).
            wanted_code: the code of the wanted class, as in data.sft_codes.
            unwanted_code: the code of the other.
            omega: ω, weight of the posterior (paper: 30); 0 without the filter = the policy alone.
            rho: ρ, share of the weighted mass that the filter keeps, best posteriors first (paper: .2); 1 = no filter.
            tau: τ, a token whose posterior exceeds this stays in any case (paper: .8).

        Raises:
            UserError: the codes are not two texts.
        """
        super().__init__()
        if not wanted_code or not unwanted_code or wanted_code == unwanted_code:
            raise UserError(
                f"GeDi: wanted_code is {wanted_code!r} and unwanted_code {unwanted_code!r}; expected two texts"
            )
        self.class_lm, self.wanted_code, self.unwanted_code = class_lm, wanted_code, unwanted_code
        self.omega, self.rho, self.tau = omega, rho, tau
        self._model: LanguageModel | None = None
        self._codes: list[Prefix] = []

    def require_networks(self) -> None:
        require_expert(self.class_lm, "class_lm")

    def load(self, host: Host) -> None:
        super().load(host)
        self._model = load_expert(self.class_lm, "class_lm", host)
        self._codes = [text_prefix(host.tokenizer, code) for code in (self.wanted_code, self.unwanted_code)]
        wanted, unwanted = (code.ids for code in self._codes)
        if not wanted or not unwanted or wanted == unwanted:
            raise ModelError(
                f"GeDi: {self.wanted_code!r} and {self.unwanted_code!r} are the tokens {wanted} and {unwanted} of "
                f"{host.config.pretrained}, which do not tell the classes apart; choose codes that its tokenizer knows"
            )

    @property
    def forward_passes_per_token(self) -> float:
        """1 for the policy + 1 for each class, through the conditional model."""
        return 3.0

    @property
    def networks(self) -> Sequence[LanguageModel]:
        assert self._model is not None
        return [self.host.policy, self._model]

    @property
    def prefix_tokens(self) -> int:
        return max(map(len, self._codes))

    @property
    def opening(self) -> int:
        """Tokens that open every text, before which the class code stands: no class says how likely they are."""
        return self._codes[0].opening

    def decoder(self) -> Decoder:
        assert self._model is not None
        return _GeDiDecoder(self, [_ConditionalDecoder(self._model, code) for code in self._codes])

    def settings(self) -> dict[str, Any]:
        return {
            name: getattr(self, name) for name in ("class_lm", "wanted_code", "unwanted_code", "omega", "rho", "tau")
        }


class _ConditionalDecoder:
    """log p(text so far, next token | class), [B, V], of one class; the text is the prompt and the response so far."""

    _so_far: Tensor
    """f32 [B], log p of the text that was read"""
    _next: Tensor
    """f32 [B, V], the same with each next token"""

    def __init__(self, model: LanguageModel, code: Prefix) -> None:
        self._model, self._code = model, code
        self._trunk = CachedTrunk(model)

    def start(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        ids, mask = self._code.before(input_ids, attention_mask)
        hidden = self._trunk.start(ids, mask)
        self._so_far = self._prompt_logprob(hidden, ids, mask)
        return self._joint(hidden[:, -1])

    def advance(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        self._so_far = self._next.gather(1, tokens[:, None]).squeeze(1)
        return self._joint(self._trunk.advance(tokens, self._code.over(attention_mask)))

    def keep(self, rows: Tensor) -> None:
        self._trunk.keep(rows)
        self._next = self._next[rows]  # what `advance` takes the text so far from

    def _joint(self, hidden: Tensor) -> Tensor:
        self._next = self._so_far[:, None] + self._model.head(hidden).float().log_softmax(dim=-1)
        return self._next

    def _prompt_logprob(self, hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """f32 [B], log p(prompt | class): each token by the hidden state of the counted token before it."""
        before = previous_column(mask)[:, len(self._code) :]
        predicting = hidden.gather(1, before[..., None].expand(-1, -1, hidden.shape[-1]))
        tokens, counts = ids[:, len(self._code) :], mask[:, len(self._code) :]
        logprobs = token_logprobs(predicting, tokens, self._model.head, _PLAIN, self._model.eos_token_ids)
        return (logprobs * counts).sum(dim=1)


class _GeDiDecoder(JointDecoder):
    def __init__(self, method: GeDi, classes: list[_ConditionalDecoder]) -> None:
        super().__init__([CachedDecoder(method.host.policy), *classes], method.host)
        self._method = method

    def start(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        self._tokens = self._count(attention_mask)
        return super().start(input_ids, attention_mask)

    def advance(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        self._tokens = self._count(attention_mask)
        return super().advance(tokens, attention_mask)

    def _count(self, attention_mask: Tensor) -> Tensor:
        """i64 [B], tokens that the classes' probabilities are of: the text's, with the next, without what opens it."""
        return attention_mask.sum(dim=1) + 1 - self._method.opening

    def combine(self, logits: Sequence[Tensor]) -> Tensor:
        base, wanted, unwanted = logits
        posterior = wanted_logposterior(wanted, unwanted, self._tokens[:, None])
        method = self._method
        return gedi(base, posterior, method.omega, method.rho, method.tau, self.ban(base))
