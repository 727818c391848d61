"""DExperts: a product of experts (Liu et al. 2021, arXiv 2105.03023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_rarlhf.cached_decoding.cached_decoder import CachedDecoder
from lightning_rarlhf.decoding.experts import load_expert, require_expert
from lightning_rarlhf.decoding.method import Host, JointDecoder, StepwiseMethod
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.functional.decoding import dexperts, nucleus
from lightning_rarlhf.language_model import LanguageModel
from lightning_rarlhf.number_types import Fraction
from lightning_rarlhf.sampling import Decoder


class DExperts(StepwiseMethod):
    """z_base + α (z_expert − z_anti) inside the policy's nucleus; the policy stands in for a missing expert."""

    def __init__(
        self,
        expert: str | None = None,
        anti_expert: str | None = None,
        alpha: float = 2.0,
        filter_p: Fraction = 0.9,
    ) -> None:
        """Remember the settings.

        Args:
            expert: hub id or folder of a language model of the wanted class; none = the policy stands in.
            anti_expert: the same of the unwanted class.
            alpha: weight of the experts' difference (paper: 2.0 for toxicity, 3.2 for sentiment).
            filter_p: only the likeliest tokens of the policy that hold this mass can be drawn (paper: .9); 1 = all.
        """
        super().__init__()
        if expert is None and anti_expert is None:
            raise UserError("DExperts has neither model.method.expert nor model.method.anti_expert; give at least one")
        self.expert, self.anti_expert = expert, anti_expert
        self.alpha, self.filter_p = alpha, filter_p
        self._experts: dict[str, LanguageModel] = {}

    def require_networks(self) -> None:
        for role, name in self._named().items():
            require_expert(name, role)

    def load(self, host: Host) -> None:
        super().load(host)
        self._experts = {role: load_expert(name, role, host) for role, name in self._named().items()}

    @property
    def forward_passes_per_token(self) -> float:
        """1 for the policy + 1 for each expert that there is."""
        return 1.0 + len(self._named())

    @property
    def networks(self) -> Sequence[LanguageModel]:
        return [self.host.policy, *self._experts.values()]

    def decoder(self) -> Decoder:
        return _DExpertsDecoder(self, self._experts)

    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("expert", "anti_expert", "alpha", "filter_p")}

    def _named(self) -> dict[str, str]:
        """The experts that there are, by role."""
        named = {"expert": self.expert, "anti_expert": self.anti_expert}
        return {role: name for role, name in named.items() if name is not None}


class _DExpertsDecoder(JointDecoder):
    def __init__(self, method: DExperts, experts: dict[str, LanguageModel]) -> None:
        models = [method.host.policy, *experts.values()]
        super().__init__([CachedDecoder(model) for model in models], method.host)
        self._method, self._roles = method, ["base", *experts]

    def combine(self, logits: Sequence[Tensor]) -> Tensor:
        said = dict(zip(self._roles, logits, strict=True))
        base = said["base"]
        inside = nucleus(base, self._method.filter_p, self.ban(base))
        return dexperts(base, said.get("expert", base), said.get("anti_expert", base), self._method.alpha, inside)
