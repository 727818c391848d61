"""A configuration file that is not what it should be is refused with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_rarlhf.command_line.config_file import require_settings
from lightning_rarlhf.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model:\n  ppo:\n    a: 1\n   kl: 2\n", r", line 4: is not YAML \(.*\); is the indentation right\?"),
        (b"model:\n\tppo: 1\n", r", line 2: is not YAML"),
        (b"- model\n- data\n", r": holds a list; expected settings by name, as model:, data: and trainer:"),
        (b"just words\n", r": holds 'just words'; expected settings by name"),
        (b"", r": holds nothing; expected settings by name"),
        (b"\xf8\x00\xff", r": is not text in UTF-8; expected settings by name"),
        (b"a: \x01\n", r": is not YAML; expected settings by name"),
        (b"a: 1\nb: 2\na: 3\n", r", line 3: a a second time, after line 1, which would not count; put them together"),
        (b"x:\n  y:\n    z: 1\n    z: 2\n", r", line 4: x\.y\.z a second time, after line 3"),
        (b"x:\n- y: 1\n  y: 2\n", r", line 3: x\.y a second time, after line 2"),
    ],
)
def test_what_is_wrong_and_where(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}{message}") as told:
        require_settings(path)
    assert "\n" not in str(told.value)


def test_what_is_right_is_let_through(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("\ufeffa: &a\n  b: 1\nc:\n  <<: *a\n  <<: *a\n  list: [{x: 1}, {x: 2}]\n", encoding="utf-8")
    require_settings(path)
    for shipped in (ROOT / "configs").rglob("*.yaml"):
        require_settings(shipped)


@pytest.mark.parametrize(
    "content",
    ['{\n\t"trainer": {"max_epochs": 3}\n}\n', '{1: a, "1": b}\n', "? [a, b]\n: c\n", "a: &a\n  b: *a\n"],
    ids=["JSON indented by tabs", "a number and a text", "a list as a key", "an anchor within itself"],
)
def test_what_the_parser_reads_is_let_through(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    require_settings(path)
