"""Turns jsonargparse's page about a wrong key or value into the one line that says what to mend."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import itertools
import re
import typing
from collections.abc import Iterable, Iterator

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from torch.optim import Optimizer

from lightning_rarlhf.decoding.method import DecodingMethod
from lightning_rarlhf.plain_text import first_line
from lightning_rarlhf.reward_models import RewardModel

_UNKNOWN = re.compile(
    r"unrecognized arguments: --(?P<argument>[^\s=]+)"
    r"|Group '(?P<group>[^']+)' does not accept option '(?P<member>[^']+)'"
    r"|does not accept option '(?P<option>[^']+)'"
    r"|Option '(?P<key>[^']+)' is not accepted"
    r"|Key '(?P<expected>[^']+)' is not expected"
)
_CLASS = re.compile(r"Problem with given class_path '(?P<path>[^']+)'")
_CALLED = re.compile(r"class_path='(?P<path>[^']+)'")
"""in a complaint's own line: what was to be made with the key, as an optimizer"""
_NO_SUCH_CLASS = re.compile(r"Expected a dot import path string: (?P<name>\w+)$")
_NO_CLASS = re.compile(r"Expected an instantiatable class, but \S+ is abstract$")
_KINDS: dict[str, type] = {
    "model": LightningModule,
    "data": LightningDataModule,
    "callbacks": Callback,
    "method": DecodingMethod,
    "reward": RewardModel,
    "optimizer": Optimizer,
    "logger": Logger,
    "strategy": Strategy,
}
"""of the classes that a key's last part takes by their bare names"""
_PARSER_KEY = re.compile(r'Parser key "(?P<key>[^"]+)":\s*(?P<rest>.*)')
_GIVEN = "Given value: "
_NOISE = (
    "Does not validate against",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Problem with given class_path",
    "Expected a path but",
)


def condense(message: str, parser: LightningArgumentParser) -> str:
    """One line: the unknown key with the nearest valid one, or the key whose value is wrong and why.

    A key may have alternatives (one callback or a list of them); the first one's complaint is the one that counts.
    """
    value = _wrong_value(message)
    if value and not _UNKNOWN.search(value):
        return value
    return _unknown_key(message, parser) or value or first_line(message)


def _unknown_key(message: str, parser: LightningArgumentParser) -> str | None:
    found = _UNKNOWN.search(message)
    if not found:
        return None
    parts = found.groupdict()
    key = f"{parts['group']}.{parts['member']}" if parts["group"] else next(part for part in parts.values() if part)
    line = message[found.end() :].partition("\n")[0]
    owner = _CALLED.findall(line) or _CLASS.findall(message[: found.start()])
    valid = list(_keys_of_class(owner[-1])) if owner else list(_keys_of_parser(parser))
    where = f" of {owner[-1].rpartition('.')[2]}" if owner else ""
    return f"unknown key {key!r}{where}; {_suggest(key, valid)}"


def _suggest(key: str, valid: list[str]) -> str:
    """The nearest valid key: by its whole dotted name, by its first part if that is wrong, or else by its last."""
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.7)
    head, dot, _ = key.partition(".")
    tops = {name.partition(".")[0] for name in valid}
    if not near and dot and head not in tops:
        near = difflib.get_close_matches(head, tops, n=1)
    if not near:
        by_leaf = {name.rpartition(".")[2]: name for name in valid}
        near = [by_leaf[leaf] for leaf in difflib.get_close_matches(key.rpartition(".")[2], by_leaf, n=1, cutoff=0.6)]
    if near:
        return f"did you mean {near[0]!r}?"
    return f"valid keys: {', '.join(sorted(tops))}"


def _keys_of_class(path: str) -> Iterator[str]:
    """Dotted keys that the class at import path `path` accepts, the fields of its dataclass arguments included."""
    from jsonargparse._util import import_object

    cls = import_object(path)
    for owner in cls.__mro__:
        if "__init__" not in vars(owner) or owner is object:
            continue
        hints = typing.get_type_hints(owner.__init__)
        for name, parameter in inspect.signature(owner.__init__).parameters.items():
            if name != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                yield from _with_fields(name, hints.get(name))
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(owner.__init__).parameters.values()):
            return


def _with_fields(name: str, hint: object) -> Iterable[str]:
    yield name
    if dataclasses.is_dataclass(hint):
        yield from (f"{name}.{field.name}" for field in dataclasses.fields(hint))


def _keys_of_parser(parser: LightningArgumentParser) -> Iterator[str]:
    """Every option of the parser and of its subcommands."""
    parsers = [parser, *(parser._subcommands_action._name_parser_map.values() if parser._subcommands_action else [])]
    for each in parsers:
        for action in each._actions:
            yield from (option.removeprefix("--") for option in action.option_strings if option.startswith("--"))


def _wrong_value(message: str) -> str | None:
    """``model.ppo.gamma: ...``: the chain of keys and the first reason below it."""
    keys: list[str] = []
    lines = list(map(str.strip, message.splitlines()))
    for number, line in enumerate(lines):
        text = line.removeprefix("- ")
        found = _PARSER_KEY.search(text)
        if found:
            keys.append(found["key"])
            text = found["rest"]
        if keys and text and not text.startswith(_NOISE):
            if _NO_CLASS.search(text):
                return f"{'.'.join(keys)}: names no class; an overlay needs its task first: --config configs/TASK.yaml"
            name = _misspelt([text, *lines[number + 1 :]])
            reason = _no_such_class(name, keys) if name else text + _given(lines[number + 1 :], text)
            return f"{'.'.join(keys)}: {reason}"
    return None


def _misspelt(lines: list[str]) -> str | None:
    """The class name that is none, if any alternative of the same key takes classes: a list of them may come first."""
    own = itertools.takewhile(lambda line: not _PARSER_KEY.search(line), lines)
    names = (found["name"] for found in map(_NO_SUCH_CLASS.search, own) if found)
    return next(filter(str.isidentifier, names), None)


def _no_such_class(name: str, keys: list[str]) -> str:
    kind = _KINDS.get(".".join(keys).rpartition(".")[2])
    near = difflib.get_close_matches(name, set(_names_below(kind)), n=1) if kind else []
    mend = f"did you mean {near[0]!r}?" if near else "give its import path, as package.module.Name"
    return f"no class is called {name!r}; {mend}"


def _names_below(kind: type) -> Iterator[str]:
    """Names of the classes that are of that kind, as far as they are imported."""
    below: list[type] = kind.__subclasses__()
    for cls in below:
        yield cls.__name__
        yield from _names_below(cls)


def _given(lines: list[str], reason: str) -> str:
    """The value, where the reason does not hold it: jsonargparse names it after the last alternative's reason."""
    value = next((line.removeprefix(_GIVEN) for line in lines if line.startswith(_GIVEN)), "")
    plain = value and not value.startswith(("NestedArg(", "Namespace(", "{"))
    return f", got {value}" if plain and value not in reason else ""
