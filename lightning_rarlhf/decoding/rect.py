"""RECT: no token may be likelier than the chance that the text still ends well (Cao et al. 2023, arXiv 2302.14003)."""

from __future__ import annotations

from typing import Any

import torch
from jsonargparse.typing import PositiveFloat
from torch import Tensor

from lightning_rarlhf.decoding.method import Host, StepwiseMethod
from lightning_rarlhf.decoding.risk_head import RiskHead, load_risk_head
from lightning_rarlhf.functional.decoding import rectify
from lightning_rarlhf.policy import LanguageModel
from lightning_rarlhf.sampling import CachedTrunk, Decoder


class Rect(StepwiseMethod):
    """Draws ∝ min(p, (1 − risk)^power), with the risk that a head fitted by `RectModule` predicts."""

    def __init__(self, head: str, power: PositiveFloat = 1.0) -> None:
        """Remember the settings.

        Args:
            head: run folder of `RectModule`, or the file that it wrote there.
            power: of the cap 1 − risk (paper: 1, a cap that rarely binds where no token is likely); more is stricter.
        """
        super().__init__()
        self.head, self.power = head, power
        self._risk: RiskHead | None = None

    def load(self, host: Host) -> None:
        super().load(host)
        self._risk = load_risk_head(self.head, host.policy.hidden_size).to(host.device)

    @property
    def forward_passes_per_token(self) -> float:
        """1: the head reads the states that the policy's pass has anyway, at the cost of one more output layer."""
        return 1.0

    def decoder(self) -> Decoder:
        assert self._risk is not None
        return _RectDecoder(self.host.policy, self._risk, self.power)

    def settings(self) -> dict[str, Any]:
        return {"head": self.head, "power": self.power}


class _RectDecoder:
    def __init__(self, policy: LanguageModel, risk: RiskHead, power: float) -> None:
        self._policy, self._risk, self._power = policy, risk, power
        self._trunk = CachedTrunk(policy)

    def start(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self._capped(self._trunk.start(input_ids, attention_mask)[:, -1])

    def advance(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        return self._capped(self._trunk.advance(tokens, attention_mask))

    def _capped(self, hidden: Tensor) -> Tensor:
        risk = self._risk(hidden, self._policy.lm.get_output_embeddings().weight)
        log_safety = torch.nn.functional.logsigmoid(-risk)  # log(1 − risk), exact where 1 − risk would round to 0
        return rectify(self._policy.head(hidden), self._power * log_safety)
