"""Other people's strings made harmless to show: in a terminal, in Markdown and HTML, in a picture, in a spreadsheet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""C0 and C1 controls but tab and line feed (an escape sequence can repaint a terminal), line separators that are not
\\n, marks that turn the direction of writing (a line can then read otherwise than it is), halves of surrogate pairs"""
_MARKUP = str.maketrans({"<": "(", ">": ")", "`": "'", "|": "/", "\n": " ", "\t": " "})
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""with one of these in front (the last four are full width), a cell of a CSV file is run by a spreadsheet"""


def visible(text: str) -> str:
    r"""`text` with what would act on a terminal spelt out.

    >>> visible("a\x1b[31mb\u202ec\n")
    'a\\x1b[31mb\\u202ec\n'
    """
    return _CONTROL.sub(_spelt, text)


def one_line(text: str) -> str:
    """As `visible`, and on one line."""
    return visible(text).replace("\n", "\\n").replace("\t", " ")


def first_line(message: object) -> str:
    r"""The first line of an error's words that is not blank; the name of its class if it says nothing.

    >>> first_line(ValueError("\n no\nmore")), first_line(ValueError())
    ('no', 'ValueError')
    """
    return next((line.strip() for line in str(message).splitlines() if line.strip()), type(message).__name__)


def error_line(message: object) -> str:
    """What a command says of a mistake."""
    return f"error: {one_line(str(message))}\n"


def name_to_show(text: str) -> str:
    """A label, a model's or a dataset's name, fit for a table in any form: no markup, no formula, one line.

    >>> name_to_show("<img src=x>|[a](b)")
    '(img src=x)/[a] (b)'
    >>> name_to_show("=1+1")
    "'=1+1"
    """
    shown = visible(text.strip()).translate(_MARKUP).replace("](", "] (")
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def names_to_show(value: Any) -> Any:
    """`name_to_show` of every string of plain data, however nested; its keys included."""
    if isinstance(value, str):
        return name_to_show(value)
    if isinstance(value, Mapping):
        return {names_to_show(key): names_to_show(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [names_to_show(item) for item in value]
    return value


def escaped_json(line: str) -> str:
    r"""A line of JSON in which every control character is written as its escape; it reads back as the same text.

    >>> escaped_json('"a\x9bb"')
    '"a\\u009bb"'
    """
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def _spelt(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
