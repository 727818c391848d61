"""The settings that a class takes, by their dotted names, and the classes that there are of a kind."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator


def keys_of_class(cls: object) -> Iterator[str]:
    """Dotted keys that `cls` accepts, the fields of its dataclass arguments included, however deep."""
    for name, hint in arguments_of(cls):
        yield from _with_fields(name, hint, ())


def fields_of(path: str, key: str) -> list[str]:
    """Names of the settings in the group `key` (dotted) of the class at import path `path`; empty if it is no group."""
    within = [name.removeprefix(f"{key}.") for name in keys_of_class(class_at(path)) if name.startswith(f"{key}.")]
    return [name for name in within if "." not in name]


def class_at(path: str) -> type:
    """The class at an import path."""
    from jsonargparse._util import import_object

    found: type = import_object(path)
    return found


def classes_below(kind: type) -> Iterator[type]:
    """Classes that are of that kind, as far as they are imported."""
    below: list[type] = kind.__subclasses__()
    for cls in below:
        yield cls
        yield from classes_below(cls)


def group_of(hint: object) -> type | None:
    """The dataclass that an argument of type `hint` takes, alone or among others."""
    options = (hint, *typing.get_args(hint))
    return next((option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)), None)


def arguments_of(cls: object) -> Iterator[tuple[str, object]]:
    """Arguments of the constructor, and of those above it that it hands others on to, with their type hints.

    A hint is None where it cannot be resolved; a default of None is part of it. A function has no arguments here,
    though it may make modules too.
    """
    for owner in cls.__mro__ if isinstance(cls, type) else ():
        if "__init__" not in vars(owner) or owner is object:
            continue
        hints = _hints(vars(owner)["__init__"])
        parameters = inspect.signature(vars(owner)["__init__"]).parameters
        for name, parameter in parameters.items():
            if name != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                hint = hints.get(name)
                yield name, typing.Optional[hint] if parameter.default is None and hint else hint  # noqa: UP045
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return


def _hints(named: Callable[..., object] | type) -> dict[str, object]:
    """Empty where a hint names what is imported for type checkers alone, as those of abstract bases may."""
    try:
        return typing.get_type_hints(named)
    except NameError:
        return {}


def _with_fields(name: str, hint: object, within: tuple[type, ...]) -> Iterator[str]:
    yield name
    group = group_of(hint)
    if group is not None and group not in within:  # a group may hold its own kind
        hints = _hints(group)
        for field in dataclasses.fields(group):
            yield from _with_fields(f"{name}.{field.name}", hints.get(field.name), (*within, group))
