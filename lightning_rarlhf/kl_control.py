"""The KL penalty's coefficient β: fixed, or moved so that the observed KL approaches a target (Eqs. 4 and 12)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from lightning_rarlhf.config import ControllerKL, KLConfig
from lightning_rarlhf.errors import UserError

_MAX_ERROR = 0.2
"""an observation further from its target than this share counts as this far (Eq. 4)"""
_LARGEST_K = 5
"""1 / _MAX_ERROR: with K this large an observation below the target makes β 0, with a larger one negative"""


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
        if not 0 <= init < math.inf:
            raise UserError(f"KL coefficient: got {init}, expected a finite number of at least 0")
        self._value = float(init)

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
        init: β > 0 at the start.
        target: wanted KL per episode, in nats, > 0.
        horizon: episodes over which β can grow by about e^0.2, more than a fifth of an iteration's.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, init: float, target: float, horizon: int) -> None:
        if not target > 0:
            raise ValueError(f"target: got {target}, expected more than 0 nats")
        if horizon < 1:
            raise ValueError(f"horizon: got {horizon}, expected at least 1 episode")
        self._value = _require_positive(init)
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
            UserError: the horizon is too small for so many episodes, whatever `kl` is this time.
        """
        _require_horizon(self._horizon, n_episodes)
        if math.isnan(kl):
            raise ValueError("kl: got NaN, expected a number; the log-probabilities of this iteration are broken")
        error = min(max(kl / self._target - 1, -_MAX_ERROR), _MAX_ERROR)
        self._value *= 1 + error * n_episodes / self._horizon

    def state_dict(self) -> dict[str, float]:
        """β; target and horizon are settings, not state."""
        return {"value": self._value}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from the β of `state`.

        Raises:
            UserError: it is 0 or below, as that of a fixed controller can be.
        """
        self._value = _require_positive(state["value"])


def build_kl_controller(config: KLConfig) -> KLController:
    """Controller that `config` asks for.

    Raises:
        UserError: one that could never move β.
    """
    if config.adaptive:
        if config.init_kl_coef == 0:
            raise UserError(
                "kl.init_kl_coef=0 would stay 0, as kl.adaptive only multiplies it: set adaptive: false, or "
                "init_kl_coef above 0"
            )
        return AdaptiveKLController(config.init_kl_coef, config.target, config.horizon)
    return FixedKLController(config.init_kl_coef)


def require_horizon(config: KLConfig, n_episodes: int) -> None:
    """Refuse a horizon with which β would become negative, and the penalty a reward for drift.

    Args:
        config: of the controller.
        n_episodes: episodes of an iteration, B.

    Raises:
        UserError: the factor 1 + K e of Eq. 4 can be 0 or below, as B / horizon is 5 or more.
    """
    if config.adaptive:
        _require_horizon(config.horizon, n_episodes)


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


def _require_horizon(horizon: int, n_episodes: int) -> None:
    if n_episodes < _LARGEST_K * horizon:
        return
    raise UserError(
        f"kl.horizon={horizon} is too small for batches of {n_episodes} episodes: a KL below the target would take the "
        f"KL coefficient to 0 or below (factor 1 − {_MAX_ERROR}·{n_episodes}/{horizon}); set kl.horizon to "
        f"{n_episodes // _LARGEST_K + 1} or more, better to many batches (paper: 10,000)"
    )


def _require_positive(value: float) -> float:
    if not 0 < value < math.inf:
        raise UserError(
            f"adaptive KL coefficient: got {value}, expected a finite number above 0, as it is only ever multiplied"
        )
    return float(value)
