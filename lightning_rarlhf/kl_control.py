"""The KL penalty's coefficient β: fixed, or moved so that the observed KL approaches a target (Eqs. 4 and 12)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from lightning_rarlhf.config import ControllerKL, KLConfig

_MAX_ERROR = 0.2
"""an observation further from its target than this share counts as this far (Eq. 4)"""


class KLController(Protocol):
    """Holds β and may move it once per iteration."""

    @property
    def value(self) -> float:
        """β, the weight of the KL penalty in the token rewards."""
        ...

    def update(self, kl: float, n_episodes: int) -> None:
        """Take in one iteration's observed KL (nats per episode) over `n_episodes` episodes."""
        ...

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint must hold: plain Python numbers."""
        ...

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take up what `state_dict` gave."""
        ...


class FixedKLController:
    """β stays what it was configured to be.

    Args:
        init: β ≥ 0.
    """

    def __init__(self, init: float) -> None:
        self._value = _require_coefficient(init)

    @property
    def value(self) -> float:
        """β."""
        return self._value

    def update(self, kl: float, n_episodes: int) -> None:
        """Ignore the observation."""

    def state_dict(self) -> dict[str, float]:
        """β, for the record."""
        return {"value": self._value}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Keep the configured β: a resumed run that was given another one must use it."""


class AdaptiveKLController:
    """β ← β (1 + K e) with e = clip(KL/target - 1, ±0.2) and K = episodes/horizon (Eqs. 4 and 12).

    Args:
        init: β ≥ 0 at the start.
        target: wanted KL per episode, in nats, > 0.
        horizon: episodes over which β can grow by about e^0.2, ≥ 1.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, init: float, target: float, horizon: int) -> None:
        if not target > 0:
            raise ValueError(f"target: got {target}, expected more than 0 nats")
        if horizon < 1:
            raise ValueError(f"horizon: got {horizon}, expected at least 1 episode")
        self._value = _require_coefficient(init)
        self._target = float(target)
        self._horizon = horizon

    @property
    def value(self) -> float:
        """β."""
        return self._value

    def update(self, kl: float, n_episodes: int) -> None:
        """Move β by one observation.

        Args:
            kl: observed KL per episode, in nats (see `observed_kl`).
            n_episodes: episodes sampled in the iteration, B, whichever of them were kept.

        Raises:
            ValueError: if `kl` is NaN, which clipping would quietly turn into a step.
        """
        if math.isnan(kl):
            raise ValueError("kl: got NaN, expected a number; the log-probabilities of this iteration are broken")
        error = min(max(kl / self._target - 1, -_MAX_ERROR), _MAX_ERROR)
        self._value *= 1 + error * n_episodes / self._horizon

    def state_dict(self) -> dict[str, float]:
        """β; target and horizon are settings, not state."""
        return {"value": self._value}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from the β of `state`."""
        self._value = _require_coefficient(state["value"])


def build_kl_controller(config: KLConfig) -> KLController:
    """Controller that `config` asks for."""
    if config.adaptive:
        return AdaptiveKLController(config.init_kl_coef, config.target, config.horizon)
    return FixedKLController(config.init_kl_coef)


def observed_kl(kl_per_episode: Tensor, kept: Tensor, mode: ControllerKL) -> float:
    """KL that the controller sees, in nats per episode.

    Args:
        kl_per_episode: f32 [B], Σ_t log π - log π_ref of every episode.
        kept: i64 [k], rows in the tail.
        mode: "kept_mean" = mean over the kept (Eq. 12), "all_mean" = mean over all, "kept_sum_over_batch" = sum over
            the kept divided by B (the authors' code: k/B times Eq. 12, so its target acts B/k times as lax).

    Raises:
        ValueError: if `mode` is none of these.
    """
    kl = kl_per_episode.double()
    if mode == "kept_mean":
        return kl[kept].mean().item()
    if mode == "all_mean":
        return kl.mean().item()
    if mode == "kept_sum_over_batch":
        return kl[kept].sum().item() / len(kl)
    raise ValueError(f"mode: got {mode!r}, expected 'kept_mean', 'all_mean' or 'kept_sum_over_batch'")


def _require_coefficient(value: float) -> float:
    if not 0 <= value < math.inf:
        raise ValueError(f"KL coefficient: got {value}, expected a finite number of at least 0")
    return float(value)
