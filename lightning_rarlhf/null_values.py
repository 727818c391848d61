"""Null where a setting takes none: jsonargparse hands it on to the class, which would fail on it somewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from jsonargparse import Namespace

from lightning_rarlhf.class_keys import arguments_of, class_at, group_of
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.number_types import number_words

_OURS = ("lightning_rarlhf.", "datamodules.", "callbacks.")
"""whose type hints are checked, so that they say what may be null"""


def require_values(settings: Any, key: str, kind: type | None = None) -> None:
    """Look at every setting below `key`: of classes by their import paths, of groups, and of lists of either.

    Args:
        settings: as the command line parsed them.
        key: where they stand, dotted.
        kind: the dataclass that they make, if they name no class.

    Raises:
        UserError: with the key and what it takes.
    """
    if isinstance(settings, list | tuple):
        for each in settings:
            require_values(each, key)
        return
    if not isinstance(settings, Namespace | Mapping):
        return
    path = settings.get("class_path")
    if path is not None:
        kind, settings = class_at(path), settings.get("init_args") or {}
    ours = isinstance(kind, type) and f"{kind.__module__}.".startswith(_OURS)
    hints = dict(arguments_of(kind)) if ours else {}
    for name, value in (vars(settings) if isinstance(settings, Namespace) else settings).items():
        hint = hints.get(name)
        if value is None and not _takes_null(hint):
            raise UserError(f"{key}.{name}: got null or nothing, expected {_in_words(hint)}")
        require_values(value, f"{key}.{name}", group_of(hint))


def _takes_null(hint: Any) -> bool:
    return hint in (None, NoneType, Any, object) or NoneType in get_args(hint)


def _in_words(hint: Any) -> str:
    name = getattr(hint, "__name__", "")
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if is_dataclass(hint):
        return "settings by name"
    return number_words(name) or _WORDS.get(name, "a value")


_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
