"""How far an update has moved the policy from the one that drew the tokens.

The KL that the method punishes and steers by (Eqs. 5 and 12) needs no function: it is the log-ratio itself, summed
over a response's tokens.
"""

from __future__ import annotations

from torch import Tensor


def k2(logratio: Tensor) -> Tensor:
    """½ (log π - log π_old)², nats per token: an estimate of KL that is never negative, biased, of little variance.

    Args:
        logratio: log π(a|s) - log π_old(a|s), any shape, for tokens a drawn from either.

    Source: J. Schulman, "Approximating KL divergence", 2020; right to second order in the logarithm of the ratio.
    """
    return 0.5 * logratio.square()
