"""Numbers within bounds, for settings: the command line checks them, and `require_in_range` does for everybody else.

They have a file of their own: where a class is defined, jsonargparse reads what its module says `if TYPE_CHECKING`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

from jsonargparse.typing import registered_types, restricted_number_type

from lightning_rarlhf.errors import UserError

if TYPE_CHECKING:
    Fraction = float
    Weight = float
    PositiveWeight = float
else:
    Fraction = restricted_number_type("Fraction", float, [(">", 0), ("<=", 1)])
    """A share that cannot be empty: risk level α, ρ, top-p."""
    Weight = restricted_number_type("Weight", float, [(">=", 0), ("<", math.inf)])
    PositiveWeight = restricted_number_type("PositiveWeight", float, [(">", 0), ("<", math.inf)])
    """Of a term that may be 0 or −∞: their product with an infinite weight would be no number, or always −∞."""


def require_in_range(settings: Any) -> None:
    """Hold every field of a dataclass against the bounds in its type.

    Raises:
        UserError: with the field, what was got and what was expected.
    """
    for name, kind in get_type_hints(type(settings)).items():
        _require(kind, getattr(settings, name), f"{type(settings).__name__}.{name}")


def _require(kind: Any, value: Any, name: str) -> None:
    if get_origin(kind) in (Union, UnionType):
        kinds = [option for option in get_args(kind) if option is not type(None)]
        if value is not None and len(kinds) == 1:
            _require(kinds[0], value, name)
    elif get_origin(kind) in (Sequence, list, tuple) and isinstance(value, Sequence):
        for number, item in enumerate(value):
            _require(get_args(kind)[0], item, f"{name}[{number}]")
    elif isinstance(kind, type) and issubclass(kind, int | float) and kind.__module__.startswith("jsonargparse"):
        try:
            kind(value)
        except (TypeError, ValueError) as error:
            raise UserError(f"{name}: got {value!r}, expected {number_words(kind.__name__)}") from error


def number_words(name: str) -> str | None:
    """What the number type of this name takes, as "a whole number above 0"; None if there is none.

    >>> number_words("Fraction")
    'a number above 0 and at most 1'
    """
    for key, kind in registered_types.items():
        if kind.__name__ == name and len(key) == 3 and key[1] in (int, float):
            return _in_words(dict(key[0]), "whole number" if key[1] is int else "number")
    return None


def _in_words(bounds: dict[str, float], noun: str) -> str:
    """`bounds` are numbers by ``>``, ``>=``, ``<`` or ``<=``."""
    if bounds.get("<") == math.inf:
        noun, bounds = f"finite {noun}", {sign: bound for sign, bound in bounds.items() if sign != "<"}
    if set(bounds) == {">="}:
        return f"a {noun} from {bounds['>=']} on"
    if set(bounds) == {">=", "<="}:
        return f"a {noun} from {bounds['>=']} to {bounds['<=']}"
    return f"a {noun} " + " and ".join(f"{_SIGNS[sign]} {bounds[sign]}" for sign in _SIGNS if sign in bounds)


_SIGNS = {">": "above", ">=": "at least", "<": "below", "<=": "at most", "==": "equal to", "!=": "other than"}
