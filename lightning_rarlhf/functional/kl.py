"""Estimators of KL(π ‖ π_ref) from one sampled token (J. Schulman, "Approximating KL divergence", 2020).

Each takes logratio = log π(a|s) - log π_ref(a|s), of any shape, for tokens a drawn from π, and returns one estimate per
token, in nats. The sum over a response's tokens estimates the KL of the whole response.
"""

from __future__ import annotations

import torch
from torch import Tensor


def k1(logratio: Tensor) -> Tensor:
    """log π - log π_ref: unbiased, can be negative. The method's own KL (Eqs. 5 and 12)."""
    return logratio


def k2(logratio: Tensor) -> Tensor:
    """½ (log π - log π_ref)²: never negative, biased, little variance."""
    return 0.5 * logratio.square()


def k3(logratio: Tensor) -> Tensor:
    """r - 1 - log r with r = π_ref/π: never negative and unbiased (π must reach wherever π_ref does)."""
    return torch.expm1(-logratio) + logratio
