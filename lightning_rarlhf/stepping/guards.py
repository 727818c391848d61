"""Numerical guards: what is not finite is found before it reaches a weight, and an update that runs away is stopped.

Every decision is taken on numbers that all processes share, so that all of them stop, skip or go on together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from enum import Enum, auto

import torch
from torch import Tensor, nn

from lightning_rarlhf.config import PPOConfig
from lightning_rarlhf.data_types import Rollout
from lightning_rarlhf.distributed import total, world_size
from lightning_rarlhf.errors import NumericalError, first_few
from lightning_rarlhf.trainer.sharding import whole


class Verdict(Enum):
    """What becomes of one minibatch's gradient."""

    STEP = auto()
    """the optimizer takes it"""
    DROP = auto()
    """it is thrown away; the next minibatch follows"""
    STOP = auto()
    """it is thrown away, and with it the rest of the iteration's epochs"""


def judge(figures: Mapping[str, float], config: PPOConfig) -> Verdict:
    """Whether a minibatch's gradient may be used.

    The limits come first: beyond them a ratio may be infinite, and with it the loss, which is thrown away.

    Args:
        figures: of the minibatch, over all processes, by the names of `PPOStats`.
        config: the limits.

    Raises:
        NumericalError: a loss or the gradient is not finite, and no limit was passed.
    """
    _require(figures["value_loss"], "loss")
    if config.target_kl is not None and figures["approx_kl"] > config.target_kl:
        return Verdict.STOP
    if config.max_ratio is not None and figures["ratio_mean"] > config.max_ratio:
        return Verdict.DROP
    _require(figures["policy_loss"] + config.vf_coef * figures["value_loss"], "loss")
    _require(figures["grad_norm"], "gradient")
    return Verdict.STEP


def judge_gradient(norm: Tensor) -> None:
    """Refuse a gradient whose global norm is not finite.

    Raises:
        NumericalError: it is not.
    """
    _require(norm.item(), "gradient")


def _require(value: float, name: str) -> None:
    if not math.isfinite(value):
        raise NumericalError(
            f"the {name} is not finite, nothing was updated with it; lower the learning rate or clip the gradient, and "
            "go on from the last checkpoint"
        )


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Global L2 norm of the gradients, a scalar; NaN or infinite if any gradient has such an element."""
    return whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def require_finite(rollout: Rollout) -> None:
    """Look at everything that the update will learn from.

    Raises:
        NumericalError: with the name of the first broken quantity and the numbers of the prompts it belongs to.
    """
    mask = rollout.response_mask
    fine_rows = {
        "scores": rollout.scores.isfinite(),
        **{
            name: (getattr(rollout, name).isfinite() | ~mask).all(dim=1)
            for name in ("logprobs", "ref_logprobs", "values", "entropy")
        },
    }
    if not torch.stack(list(fine_rows.values())).all():  # one transfer for all of them
        name, fine = next((name, fine) for name, fine in fine_rows.items() if not fine.all())
        rows = (~fine).nonzero().flatten()
        raise NumericalError(
            f"{_WORDS[name]} not finite for {len(rows)} of {len(rollout)} responses "
            f"(prompts {first_few(rollout.samples.batch.index[rows].tolist())}); go on from the last checkpoint with a "
            "lower learning rate or a higher KL penalty",
            rows=rows.tolist(),
        )


_WORDS = {
    "scores": "the scores are",
    "logprobs": "the policy's log-probabilities are",
    "ref_logprobs": "the reference's log-probabilities are",
    "values": "the critic's values are",
    "entropy": "the policy's entropy is",
}


def agree(problem: NumericalError | None, device: torch.device) -> None:
    """Raise `problem`; with several processes, raise in all of them if one has a problem.

    Raises:
        NumericalError: `problem`, or one that says that another process has one.
    """
    if world_size() > 1:
        found = total(torch.tensor(float(problem is not None), device=device)).item()
        if problem is None and found:
            raise NumericalError("another process met numbers that are not finite; see its message")
    if problem is not None:
        raise problem


def broken_gradients(named: Mapping[str, Tensor | None]) -> list[str]:
    """Names of the parameters whose gradient is not finite."""
    return [name for name, gradient in named.items() if gradient is not None and not gradient.isfinite().all()]
