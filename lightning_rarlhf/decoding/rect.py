"""RECT: no token may be likelier than the chance that the text still ends well (Cao et al. 2023, arXiv 2302.14003)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_rarlhf.cached_decoding.cached_decoder import CachedTrunk
from lightning_rarlhf.data_types import PromptBatch, Samples
from lightning_rarlhf.decoding.method import Host, StepwiseMethod
from lightning_rarlhf.decoding.risk_head import RiskHead, load_risk_head, risk_head_file
from lightning_rarlhf.errors import ModelError
from lightning_rarlhf.functional.decoding import rectify
from lightning_rarlhf.language_model import LanguageModel
from lightning_rarlhf.number_types import PositiveWeight
from lightning_rarlhf.records.results_file import weights_sha256
from lightning_rarlhf.sampling import Decoder, SamplingSeed


class Rect(StepwiseMethod):
    """Draws ∝ min(p, (1 − risk)^power), with the risk that a head fitted by `RectModule` predicts."""

    def __init__(self, head: str, power: PositiveWeight = 1.0, other_policy: bool = False) -> None:
        """Remember the settings.

        Args:
            head: run folder of `RectModule`, or the file that it wrote there.
            power: of the cap 1 − risk (paper: 1, a cap that rarely binds where no token is likely); more is stricter.
            other_policy: draw with a head that was fitted on another policy of this size; its risks are then a guess.
        """
        super().__init__()
        self.head, self.power, self.other_policy = head, power, other_policy
        self._risk: RiskHead | None = None
        self._fitted_on: str | None = None
        self._checked = other_policy

    def require_networks(self) -> None:
        risk_head_file(self.head)

    def load(self, host: Host) -> None:
        super().load(host)
        risk, self._fitted_on = load_risk_head(self.head, host.policy.hidden_size)
        self._risk = risk.to(host.device)

    @property
    def forward_passes_per_token(self) -> float:
        """1: the head reads the states that the policy's pass has anyway, at the cost of a wider output layer."""
        return 1.0

    def decoder(self) -> Decoder:
        assert self._risk is not None
        return _RectDecoder(self.host.policy, self._risk, self.power)

    def _draw(self, batch: PromptBatch, seed: SamplingSeed) -> Samples:
        """Refuse a head of other weights first: only now are the policy's those of a checkpoint, if one was named.

        Raises:
            ModelError: the head was fitted on another policy, without consent.
        """
        if not self._checked:
            self._require_own_policy()
            self._checked = True
        return super()._draw(batch, seed)

    def _require_own_policy(self) -> None:
        policy = weights_sha256(self.host.policy.lm)
        if self._fitted_on == policy:
            return
        found = self._fitted_on
        whose = "it does not say on which" if found is None else f"its policy has the weights {found:.12}"
        raise ModelError(
            f"{self.head}: not known to be fitted on this policy, {self.host.config.pretrained}: {whose}, this one "
            f"{policy:.12} (another dtype makes other weights); fit RectModule on this policy, or consent with "
            "model.method.other_policy: true"
        )

    def settings(self) -> dict[str, Any]:
        assert self._risk is not None
        return {
            "head": self.head,
            "head_sha256": weights_sha256(self._risk),
            "head_policy_sha256": self._fitted_on,
            "power": self.power,
            "other_policy": self.other_policy,
        }


class _RectDecoder:
    def __init__(self, policy: LanguageModel, risk: RiskHead, power: float) -> None:
        self._policy, self._risk, self._power = policy, risk, power
        self._trunk = CachedTrunk(policy)
        embeddings = policy.lm.get_output_embeddings().weight
        # where the policy's head is the product with these rows and nothing else, one pass over them serves both
        self._embeddings = None if policy.head_is_product else embeddings.float()

    def start(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self._capped(self._trunk.start(input_ids, attention_mask)[:, -1])

    def advance(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        return self._capped(self._trunk.advance(tokens, attention_mask))

    def keep(self, rows: Tensor) -> None:
        self._trunk.keep(rows)

    def _capped(self, hidden: Tensor) -> Tensor:
        logits, risk = self._logits_and_risk(hidden)
        log_safety = torch.nn.functional.logsigmoid(-risk)  # log(1 − risk), exact where 1 − risk would round to 0
        return rectify(logits, self._power * log_safety)

    def _logits_and_risk(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """[B, V] each, of the hidden states [B, H]."""
        if self._embeddings is not None:
            return self._policy.head(hidden), self._risk(hidden, self._embeddings)
        both = self._policy.head(torch.cat([hidden, self._risk.direction(hidden)]))
        logits, products = both.chunk(2)
        return logits, self._risk.from_products(hidden, products)
