"""The policy alone: what every other method is compared with."""

from __future__ import annotations

from lightning_rarlhf.cached_decoding.cached_decoder import CachedDecoder
from lightning_rarlhf.decoding.method import StepwiseMethod
from lightning_rarlhf.sampling import Decoder


class Plain(StepwiseMethod):
    """Draws from the policy itself."""

    @property
    def forward_passes_per_token(self) -> float:
        return 1.0

    def decoder(self) -> Decoder:
        return CachedDecoder(self.host.policy)
