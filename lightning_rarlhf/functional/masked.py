"""Mean, variance and whitening over the tokens that count.

Nothing outside a mask is ever read, so a NaN or an infinity in a padding column cannot reach a result or a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EPS = 1e-8


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of the counted values, over everything or along `dim`.

    Args:
        values: float, any shape.
        mask: bool, shape of `values`; True = counts.
        dim: dimension to average away; none = all of them, to a scalar.

    Returns:
        NaN where nothing counts, as the mean of no numbers is.

    >>> masked_mean(torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[True, True, False]]))
    tensor(2.)
    """
    counted = torch.where(mask, values, 0.0)
    if dim is None:
        return counted.sum() / mask.sum()
    return counted.sum(dim) / mask.sum(dim)


def masked_var(values: Tensor, mask: Tensor) -> Tensor:
    """Unbiased variance (Bessel's n - 1) of all the counted values, a scalar; 0 where fewer than two count.

    Args:
        values: float, any shape.
        mask: bool, shape of `values`; True = counts.
    """
    return _variance(_deviations(values, mask), mask)


def is_rounding(variance: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Whether the counted values are equal but for rounding, a bool scalar; False where one is not finite.

    True where their standard deviation is at most 8 of the steps in which the largest of them is stored, about a
    millionth of it in float32: equal numbers that went through a sum or two differ by so much.

    Args:
        variance: their `masked_var`.
        values: float, any shape.
        mask: bool, shape of `values`; True = counts.
    """
    rounding = 8 * torch.finfo(values.dtype).eps * torch.where(mask, values, 0.0).abs().max()
    return variance <= rounding.square()


def masked_whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Move the counted values to mean 0 and scale them to unit variance; every other position comes out as 0.

    The scale is 1/√(Var + 1e-8) with the unbiased variance, as in the paper's code. Equal values
    (`is_rounding`; a single counted token is the extreme case) become 0: neither NaN nor their rounding blown up.

    Args:
        values: float, any shape.
        mask: bool, shape of `values`; True = counts.
    """
    deviations = _deviations(values, mask)
    variance = _variance(deviations, mask)
    return torch.where(is_rounding(variance, values, mask), 0.0, deviations * torch.rsqrt(variance + _EPS))


def _deviations(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values - masked_mean(values, mask), 0.0)


def _variance(deviations: Tensor, mask: Tensor) -> Tensor:
    return deviations.square().sum() / (mask.sum() - 1).clamp(min=1)
