from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_rarlhf.terminal.plain_text import escaped_json, name_to_show, one_line, visible

ANY_TEXT = st.text(st.characters())  # halves of surrogate pairs included


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, café, 漢字, שלום, 👩‍👩‍👧", "plain, café, 漢字, שלום, 👩‍👩‍👧"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\rb\x9bc\x00", "a\\x0db\\x9bc\\x00"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("a\n\tb", "a\n\tb"),
    ],
)
def test_what_acts_on_a_terminal_is_spelt_out_and_the_rest_stays(text, shown):
    assert visible(text) == shown


@given(ANY_TEXT)
def test_nothing_acts_whatever_the_text(text):
    for shown in (visible(text), one_line(text), name_to_show(text)):
        shown.encode()  # a terminal could not print half a surrogate pair
        assert not [c for c in shown if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160]
    assert len(one_line(text).splitlines()) <= 1
    shown = name_to_show(text)
    assert not set("<>`|\n") & set(shown)
    assert not shown.startswith(("=", "+", "-", "@"))


@given(st.text())
def test_escaped_json_reads_back_as_the_same(text):
    line = escaped_json(json.dumps(text, ensure_ascii=False))
    assert json.loads(line) == text
    assert len(line.splitlines()) == 1
