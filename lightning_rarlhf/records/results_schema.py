"""The schema of ``results.json``, checked once where the file is read, for `report` and `certify` alike."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_rarlhf.errors import DataError
from lightning_rarlhf.terminal.plain_text import first_line

SCHEMA_VERSION = 3
"""of results.json; it rises when a key goes away or changes its meaning, or when readers come to rely on a new one"""
Check = Callable[[Any], bool]


def read_results(path: Path) -> dict[str, Any]:
    """The content of a results file that keeps its schema; versions 1 to 3 are read.

    Raises:
        DataError: missing, unreadable, or a key is missing or of another kind than documented; names file and key.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing; expected the folder of a finished `test`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (ValueError, OSError) as error:
        reason = first_line(error)
        raise DataError(f"{path} cannot be read ({reason}); run `test` again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is no results file: got {_short(content)}, expected an object; run `test` again")
    version = content.get("schema_version")
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise DataError(
            f"{path}: schema_version is {_short(version)}, expected 1 to {SCHEMA_VERSION}; update this library"
        )
    for key, value, expected in _mistakes(content):
        got = "missing" if value is _MISSING else _short(value)
        raise DataError(f"{path}: {key} is {got}, expected {expected}; the file is damaged, run `test` again")
    return content


class _Missing:
    """In place of a key that is not there."""


_MISSING = _Missing()


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 0


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _share(value: Any) -> bool:
    return _number(value) and 0 < value < 1


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _optional(check: Check) -> Check:
    return lambda value: value is _MISSING or value is None or check(value)


_TOP: Mapping[str, tuple[Check, str]] = {
    "generations_sha256": (_sha256, "a SHA-256"),
    "evaluation": (_object, "an object"),
    "metrics": (_object, "an object"),
    "module": (_optional(_text), "a text"),
    "policy": (_optional(_text), "a text"),
    "policy_sha256": (_optional(_sha256), "a SHA-256"),
    "reference": (_optional(_text), "a text or null"),
    "reference_sha256": (_optional(_sha256), "a SHA-256 or null"),
    "seed": (_optional(_number), "a number or null"),
    "reward": (_optional(_object), "an object or null"),
    "data": (_optional(_object), "an object or null"),
    "sampling": (_optional(_object), "an object or null"),
    "method": (_optional(_object), "an object or null"),
    "training": (_optional(_object), "an object or null"),
    "human_texts": (_optional(_object), "an object or null"),
}
_INSIDE: Mapping[str, Mapping[str, tuple[Check, str]]] = {
    "evaluation": {
        "confidence": (_share, "a number between 0 and 1"),
        "seed": (_optional(_whole), "a whole number"),
        "judges": (_optional(_object), "an object"),
        "toxicity_of": (_optional(_text), "a text or null"),
    },
    "data": {"sha256": (_optional(_object), "an object or null"), "name": (_optional(_text), "a text")},
    "training": {
        "module": (_text, "a text"),
        "method_sha256": (_or_null(_sha256), "a SHA-256 or null"),
        "settings": (_or_null(_object), "an object or null"),
        "seed": (_or_null(_number), "a number or null"),
        "steps": (_whole, "a whole number"),
        "chosen": (_optional(_text), "a text"),
    },
    "sampling": {"min_new_tokens": (_optional(_whole), "a whole number")},
    "human_texts": {"n": (_whole, "a whole number"), "sha256": (_sha256, "a SHA-256")},
}
_FIGURE: Mapping[str, tuple[Check, str]] = {
    "estimate": (_number, "a number"),
    "low": (_or_null(_number), "a number or null"),
    "high": (_or_null(_number), "a number or null"),
    "confidence": (_share, "a number between 0 and 1"),
    "n": (_whole, "a whole number"),
    "method": (_text, "a text"),
}


def _mistakes(content: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Key, what it holds, and what was expected."""
    yield from _wrong(content, _TOP, "")
    for key, expected in _INSIDE.items():
        if isinstance(content.get(key), dict):
            yield from _wrong(content[key], expected, f"{key}.")
    for name, figure in content["metrics"].items():
        if not isinstance(figure, dict):
            yield f"metrics.{name}", figure, "an object"
        else:
            yield from _wrong(figure, _FIGURE, f"metrics.{name}.")


def _wrong(
    content: Mapping[str, Any], expected: Mapping[str, tuple[Check, str]], prefix: str
) -> Iterator[tuple[str, Any, str]]:
    for key, (is_right, what) in expected.items():
        value = content.get(key, _MISSING)
        if not is_right(value):
            yield f"{prefix}{key}", value, what


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else f"{text[:37]}..."
