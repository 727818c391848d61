"""Null where a setting takes none: jsonargparse hands it on to the class, which would fail on it somewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import Namespace

from lightning_rarlhf.command_line.class_keys import arguments_of, class_at, group_of
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.number_types import number_words

_HINTED = ("lightning_rarlhf.", "datamodules.", "callbacks.", "torch.optim.")
"""whose type hints say what may be null"""


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
    hinted = isinstance(kind, type) and f"{kind.__module__}.".startswith(_HINTED)
    hints = dict(arguments_of(kind)) if hinted else {}
    for name, value in (vars(settings) if isinstance(settings, Namespace) else settings).items():
        hint = hints.get(name)
        if value is None and not _takes_null(hint):
            raise UserError(f"{key}.{name}: got null or nothing, expected {_in_words(hint)}")
        require_values(value, f"{key}.{name}", group_of(hint))


def _takes_null(hint: Any) -> bool:
    return hint in (None, NoneType, Any, object) or NoneType in get_args(hint)


def _in_words(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        words = dict.fromkeys(_in_words(each) for each in get_args(hint))
        return " or ".join(each for each in words if each != _ANY) or _ANY
    name = getattr(hint, "__name__", "")
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if is_dataclass(hint):
        return "settings by name"
    return number_words(name) or _WORDS.get(name, _ANY)


_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "tuple": "a list",
}
_ANY = "a value"
