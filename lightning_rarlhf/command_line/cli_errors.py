"""Turns jsonargparse's page about a wrong key or value into the one line that says what to mend."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser

from lightning_rarlhf.command_line.class_keys import class_at, classes_below, keys_of_class
from lightning_rarlhf.command_line.wrong_values import OWNER, wrong_value
from lightning_rarlhf.terminal.plain_text import first_line

_UNKNOWN = re.compile(
    r"unrecognized arguments: --(?P<argument>[^\s=]+)"
    r"|Group '(?P<group>[^']+)' does not accept option '(?P<member>[^']+)'"
    r"|does not accept option '(?P<option>[^']+)'"
    r"|Option '(?P<key>[^']+)' is not accepted"
    r"|Key '(?P<expected>[^']+)' is not expected"
)
_CALLED = re.compile(r"class_path='(?P<path>[^']+)'")
"""in a complaint's own line: what was to be made with the key, as an optimizer"""
_VALUELESS = re.compile(r"argument (?P<name>--\S+): expected one argument")
_MISSING = re.compile(r"arguments are required: .*(model|data)")


def condense(message: str, parser: LightningArgumentParser) -> str:
    """One line: the unknown key with the nearest valid one, or the key whose value is wrong and why.

    A key may have alternatives (one callback or a list of them); what each of them takes is named.
    """
    valueless = _VALUELESS.search(message)
    if valueless:
        return f"an option that begins with {valueless['name']} has no value; give one after it"
    if _MISSING.search(message):
        return f"{first_line(message)}; give them by --config configs/TASK.yaml"
    value = wrong_value(message)
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
    owner = _CALLED.findall(line) or OWNER.findall(message[: found.start()])
    valid = list(keys_of_class(class_at(owner[-1]))) if owner else list(_keys_of_parser(parser))
    where = f" of {owner[-1].rpartition('.')[2]}" if owner else ""
    inside = None if owner else _inside(key, by_option=parts["argument"] is not None)
    return f"unknown key {key!r}{where}; {inside or _suggest(key, valid)}"


def _inside(key: str, *, by_option: bool) -> str | None:
    """Where a key belongs that a model or a data module takes, if it was given beside them."""
    for group, kind in (("model", LightningModule), ("data", LightningDataModule)):
        for cls in classes_below(kind):
            if cls.__module__.startswith(("lightning_rarlhf.", "datamodules.")) and key in keys_of_class(cls):
                return f"did you mean '{group}.{key if by_option else f'init_args.{key}'}'?"
    return None


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


def _keys_of_parser(parser: LightningArgumentParser) -> Iterator[str]:
    """Every option of the parser and of its subcommands."""
    parsers = [parser, *(parser._subcommands_action._name_parser_map.values() if parser._subcommands_action else [])]
    for each in parsers:
        for action in each._actions:
            yield from (option.removeprefix("--") for option in action.option_strings if option.startswith("--"))
