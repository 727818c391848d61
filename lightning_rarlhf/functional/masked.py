"""Mean, variance and whitening over the tokens that count.

Nothing outside a mask is ever read, so a NaN or an infinity in a padding column cannot reach a result or a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EPS = 1e-8


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None, *, weights: Tensor | None = None) -> Tensor:
    """Mean of the counted values, over everything or along `dim`: Σ w·v / Σ w.

    Args:
        values: float, any shape.
        mask: bool, shape of `values`; True = counts.
        dim: dimension to average away; none = all of them, to a scalar.
        weights: float ≥ 0, broadcastable to `values` (an episode's weight is [B, 1]); none = 1 each.

    Returns:
        NaN where nothing counts, as the mean of no numbers is.

    >>> masked_mean(torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[True, True, False]]))
    tensor(2.)
    """
    weight = mask.to(values.dtype) if weights is None else torch.where(mask, weights.to(values.dtype), 0.0)
    weighted = torch.where(mask, values, 0.0) * weight
    if dim is None:
        return weighted.sum() / weight.sum()
    return weighted.sum(dim) / weight.sum(dim)


def masked_var(values: Tensor, mask: Tensor, *, unbiased: bool = True) -> Tensor:
    """Variance of all the counted values, a scalar; 0 where fewer than two count.

    Args:
        values: float, any shape.
        mask: bool, shape of `values`; True = counts.
        unbiased: divide by n - 1 (Bessel), else by n.
    """
    deviations = torch.where(mask, values - masked_mean(values, mask), 0.0)
    return deviations.square().sum() / (mask.sum() - int(unbiased)).clamp(min=1)


def masked_whiten(values: Tensor, mask: Tensor, *, center: bool = True) -> Tensor:
    """Scale the counted values to unit variance; every other position comes out as 0.

    The scale is 1/√(Var + 1e-8) with the unbiased variance, as in the paper's code. Values that do not vary (a single
    counted token is the extreme case) therefore become 0, not NaN.

    Args:
        values: float, any shape.
        mask: bool, shape of `values`; True = counts.
        center: move the mean to 0; false = leave the mean where it is.
    """
    mean = masked_mean(values, mask)
    whitened = torch.where(mask, values - mean, 0.0) * torch.rsqrt(masked_var(values, mask) + _EPS)
    return whitened if center else torch.where(mask, whitened + mean, 0.0)
