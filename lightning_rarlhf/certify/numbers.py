"""Numbers of a certificate as text: what is claimed to its last digit, what is proved rounded to the safe side."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

_DIGITS = 4
"""of a bound"""


def exact(value: float) -> str:
    """Every digit: a claim that is rounded is another claim.

    >>> exact(-3.0), exact(1234567.25)
    ('-3', '1234567.25')
    """
    return _plain(_decimal(value))


def exact_percent(share: float) -> str:
    """Every digit of a share.

    >>> exact_percent(0.01), exact_percent(0.99999)
    ('1 %', '99.999 %')
    """
    return f"{_plain(100 * _decimal(share))} %"


def at_most_percent(bound: float, claim: float) -> str:
    """An upper bound of a share, rounded up, but not beyond a `claim` that it keeps.

    >>> at_most_percent(0.0100046, 0.01), at_most_percent(0.012344, 0.0123449)
    ('1.001 %', '1.23449 %')
    """
    rounded = Context(prec=_DIGITS, rounding=ROUND_CEILING).create_decimal(100 * _decimal(bound))
    return f"{_plain(min(rounded, 100 * _decimal(claim)) if bound <= claim else rounded)} %"


def at_least(bound: float, claim: float) -> str:
    """A lower bound, rounded down, but not below a `claim` that it keeps.

    >>> at_least(0.49999, 0.5), at_least(-1.23451, -2.0), at_least(0.123457, 0.1234567)
    ('0.4999', '-1.235', '0.1234567')
    """
    rounded = Context(prec=_DIGITS, rounding=ROUND_FLOOR).create_decimal(_decimal(bound))
    return _plain(max(rounded, _decimal(claim)) if bound >= claim else rounded)


def _decimal(value: float) -> Decimal:
    """The shortest decimal that is this float, which is what was typed."""
    return Decimal(repr(float(value)))


def _plain(value: Decimal) -> str:
    return f"{value.normalize():f}" if value else "0"
