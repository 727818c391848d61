"""What a key's value should have been, in words, out of jsonargparse's page about it."""

from __future__ import annotations

import ast
import difflib
import re
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from torch.optim import Optimizer

from lightning_rarlhf.command_line.class_keys import class_at, classes_below, fields_of, keys_of_class
from lightning_rarlhf.decoding.method import DecodingMethod
from lightning_rarlhf.errors import UserError
from lightning_rarlhf.number_types import number_words
from lightning_rarlhf.reward_models import RewardModel
from lightning_rarlhf.trainer.precision import PRECISIONS

OWNER = re.compile(r"Problem with given class_path '(?P<path>[^']+)'")
_PARSER_KEY = re.compile(r'Parser key "(?P<key>[^"]+)":\s*(?P<rest>.*)')
_NO_SUCH_CLASS = re.compile(r"Expected a dot import path string: (?P<name>.*)$")
_NO_CLASS = re.compile(r"Expected an instantiatable class, but \S+ is abstract$")
_NOT_OF_CLASS = re.compile(r"Not a valid subclass of \w+")
_NO_GROUP = re.compile(r"Unable to load config '(?P<value>.*)'$")
_EXPECTED = re.compile(r"Expected an? (?P<kind><class '\S+'>|typing\.Literal\[.*?\])(\. Got value: (?P<value>.*))?$")
_NO_NUMBER = re.compile(r"Not of type (?P<kind>\w+): (?P<why>.*)$")
_VALUE_IN = re.compile(
    r"(?:invalid literal for int|could not convert string to float).*?: (?P<text>.*)$"
    r"|(?P<number>.*?) ?(?:does not conform to restriction|not a number$|not an integer$)"
)
"""in jsonargparse's reason; a value that is false, as 0, it leaves out"""
_CALLABLE = re.compile(
    r"Type typing\.Callable\[.*\] expects a function or a callable class: (?P<why>.*?)(\. Got value: .*)?$"
)
_GIVEN = "Given value: "
_NOISE = (
    "Does not validate against",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Problem with given class_path",
    "Expected a path but",
)
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
_WORDS = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'str'>": "text",
    "<class 'list'>": "a list",
    "<class 'tuple'>": "a list",
    "<class 'dict'>": "settings by name",
}
_NULL = "<class 'NoneType'>"
_OURS = {"trainer.precision": PRECISIONS, "seed_everything": "a whole number from 0 on"}
"""where the library takes less than Lightning does"""


def wrong_value(message: str) -> str | None:
    """``model.ppo.gamma: ...``: the chain of keys and the reasons below it; None if the page is about no value."""
    keys: list[str] = []
    owner, owned = "", 0
    lines = message.splitlines()
    for number, line in enumerate(lines):
        text = line.strip().removeprefix("- ")
        said = OWNER.search(text)
        if said:
            owner, owned = said["path"], len(keys)
        found = _PARSER_KEY.search(text)
        if found:
            keys.append(found["key"])
            text = found["rest"]
        if keys and text and not text.startswith(_NOISE):
            key, inner = ".".join(keys), ".".join(keys[owned:])
            fields = fields_of(owner, inner) if owner and inner else []
            return f"{key}: {_reason(key, _alternatives(lines, number, text), _given(lines[number:]), fields)}"
    return None


def require_groups(path: str, settings: Any, key: str) -> None:
    """Refuse a list where the class at import path `path` takes settings by name: jsonargparse lets it through.

    Raises:
        UserError: naming them.
    """
    for name in {key_.rpartition(".")[0] for key_ in keys_of_class(class_at(path))} - {""}:
        if isinstance(settings.get(name), list):
            whole = f"{key}.{name}"
            raise UserError(f"{whole}: got a list, expected settings by name; {_mend(whole, fields_of(path, name))}")


def _reason(key: str, reasons: list[str], given: str, fields: list[str]) -> str:
    """Why, of the reasons of a key's alternatives."""
    first, leaf = reasons[0], key.rpartition(".")[2]
    if _NO_CLASS.search(first):
        return "names no class; an overlay needs its task first: --config configs/TASK.yaml"
    no_group = _NO_GROUP.match(first)
    given = no_group["value"] if no_group else given
    names = [found["name"] for found in map(_NO_SUCH_CLASS.search, reasons) if found]
    kinds = [found["kind"] for found in map(_EXPECTED.match, reasons) if found]
    if fields and (no_group or len(names) + len(kinds) == len(reasons)):
        return f"got {given}, expected settings by name; {_mend(key, fields)}"
    if names and names[0].isidentifier() and (leaf in _KINDS or set(kinds) <= {_NULL}):
        return _no_such_class(names[0], _KINDS.get(leaf))
    if kinds and len(names) + len(kinds) == len(reasons):
        value = next((found["value"] for found in map(_EXPECTED.match, reasons) if found and found["value"]), given)
        return _expected(key, kinds, value, takes_class=bool(names) and leaf in _KINDS)
    if _NOT_OF_CLASS.match(first):
        return f"got {given}, expected a class: class_path: NAME, and init_args: with its settings below"
    no_number = _no_number(first, given, or_null=_NULL in kinds)
    if no_number:
        return no_number
    no_callable = _CALLABLE.match(first)
    text = no_callable["why"] if no_callable else first
    plain = given and not given.startswith(("NestedArg(", "Namespace(", "{"))
    return text + (f", got {given}" if plain and given not in text else "")


def _no_number(reason: str, given: str, *, or_null: bool) -> str | None:
    """What a number should have been, if `reason` is about one."""
    found = _NO_NUMBER.match(reason)
    words = number_words(found["kind"]) if found else None
    if not found or not words:
        return None
    value = _VALUE_IN.match(found["why"])
    got = (value["text"] or value["number"] or given) if value else "null" if "NoneType" in found["why"] else given
    return f"got {got}, expected {words}" + (" or null" if or_null else "")


def _alternatives(lines: list[str], number: int, text: str) -> list[str]:
    """The reason at `number`, and those of the alternatives beside it, which stand as far to the right."""
    depth = _depth(lines[number])
    if not lines[number].strip().startswith("- "):
        return [text]
    found = [text]
    for line in lines[number + 1 :]:
        if _depth(line) < depth:
            break
        if _depth(line) == depth and line.strip().startswith("- "):
            found.append(line.strip().removeprefix("- "))
    return found


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _given(lines: list[str]) -> str:
    """The value, where the reason does not hold it: jsonargparse names it after the last alternative's reason."""
    value = next((line.strip().removeprefix(_GIVEN) for line in lines if line.strip().startswith(_GIVEN)), "")
    return value.partition(". Got value: ")[0]


def _mend(key: str, fields: list[str]) -> str:
    if "pretrained" in fields:
        return f"did you mean '{key}.pretrained'?"
    return f"its keys: {', '.join(fields)}"


def _no_such_class(name: str, kind: type | None) -> str:
    near = difflib.get_close_matches(name, {cls.__name__ for cls in classes_below(kind)}, n=1) if kind else []
    mend = f"did you mean {near[0]!r}?" if near else "give its import path, as package.module.Name"
    return f"no class is called {name!r}; {mend}"


def _expected(key: str, kinds: list[str], value: str, *, takes_class: bool) -> str:
    """What the alternatives take, each once."""
    ours = _OURS.get(key)
    if ours:
        return f"got {value}, expected {ours}"
    choices = list(dict.fromkeys(choice for kind in kinds for choice in _choices(kind)))
    words = list(dict.fromkeys(_WORDS.get(kind, kind) for kind in kinds if not _choices(kind) and kind != _NULL))
    words += ["the name of a class"] if takes_class else []
    words += ["one of " + ", ".join(map(repr, choices))] if choices else []
    words += ["null"] if _NULL in kinds else []
    near = difflib.get_close_matches(value, [choice for choice in choices if isinstance(choice, str)], n=1)
    got = "null" if value == "None" else value
    return f"got {got}, expected {' or '.join(words)}" + (f"; did you mean {near[0]!r}?" if near else "")


def _choices(kind: str) -> list[str | int]:
    return list(ast.literal_eval(kind.removeprefix("typing.Literal"))) if kind.startswith("typing.Literal") else []
