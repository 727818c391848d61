"""Which tokens of a sequence count, and where they stand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def position_ids(attention_mask: Tensor) -> Tensor:
    """Position of each token among its row's counted tokens, i64 [B, S].

    Left padding gets position 0 like the first token: it is never attended to, and 0 is a valid row of any position
    table. Padding on the right repeats the last position.

    Args:
        attention_mask: bool (or 0/1) [B, S]; True = a token.

    >>> position_ids(torch.tensor([[False, False, True, True, True]])).tolist()
    [[0, 0, 0, 1, 2]]
    """
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def response_mask(tokens: Tensor, eos_token_id: int | Sequence[int]) -> Tensor:
    """Tokens up to and including the first end-of-text token, bool [B, T]; True = counts.

    What follows the first end-of-text token never counts, whatever it is, so the padding token may be the same token.

    Args:
        tokens: i64 [B, T], response columns only.
        eos_token_id: the token that ends a text, or several of them.

    >>> response_mask(torch.tensor([[5, 0, 0, 0], [5, 6, 7, 8]]), eos_token_id=0).int().tolist()
    [[1, 1, 0, 0], [1, 1, 1, 1]]
    """
    stops = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
    is_stop = torch.isin(tokens, torch.tensor(stops, dtype=tokens.dtype, device=tokens.device)).long()
    stops_before = is_stop.cumsum(dim=-1) - is_stop
    return stops_before == 0


def last_token_index(mask: Tensor) -> Tensor:
    """Column of each row's last counted token, i64 [B].

    A row in which nothing counts gives 0, so that the result can always index; `mask` itself tells such rows apart.

    Args:
        mask: bool [B, T]; True = counts.

    >>> last_token_index(torch.tensor([[True, True, False], [False, False, False]])).tolist()
    [1, 0]
    """
    trailing = (mask.long().flip(-1).cumsum(dim=-1) == 0).sum(dim=-1)
    return (mask.shape[-1] - 1 - trailing).clamp(min=0)


def pad_right(rows: Tensor, width: int, value: float) -> Tensor:
    """Append columns of `value` to [B, n] until it is [B, width].

    >>> pad_right(torch.tensor([[5, 6]]), 3, 0).tolist()
    [[5, 6, 0]]
    """
    return torch.nn.functional.pad(rows, (0, width - rows.shape[1]), value=value)


def previous_column(mask: Tensor) -> Tensor:
    """Column of the counted token before each column, i64 [B, S]; 0 where there is none.

    Args:
        mask: bool [B, S]; True = counts.

    >>> previous_column(torch.tensor([[True, True, False, True, True]])).tolist()
    [[0, 0, 1, 1, 3]]
    """
    columns = torch.arange(mask.shape[1], device=mask.device) * mask
    return torch.nn.functional.pad(columns.cummax(dim=1).values[:, :-1], (1, 0))


def spread_rows(values: Tensor, rows: Tensor | None, width: int, empty: float) -> Tensor:
    """Values of some rows, put back among all of them: [b, ...] → [width, ...], `empty` elsewhere.

    Args:
        values: [b, ...].
        rows: i64 [b], where each belongs; all of them in order, or None: the values are returned as they are.
        width: number of all rows.
        empty: what the other rows get.

    >>> spread_rows(torch.tensor([5.0, 7.0]), torch.tensor([2, 0]), 3, empty=0.0).tolist()
    [7.0, 0.0, 5.0]
    """
    if rows is None or len(rows) == width:
        return values
    return values.new_full((width, *values.shape[1:]), empty).index_copy_(0, rows, values)
