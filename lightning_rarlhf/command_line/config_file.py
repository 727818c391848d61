"""A configuration file as it is written: what is no YAML of settings by name is named with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning_rarlhf.errors import UserError

_SHAPE = "expected settings by name, as model:, data: and trainer:, each with its own indented below it"


def require_settings(path: Path) -> None:
    """Refuse a file that is not text, not YAML, not a mapping, or that says one key twice, of which one would be lost.

    Raises:
        UserError: with the line.
    """
    import yaml

    text = ""
    try:
        text = path.read_text(encoding="utf-8-sig")
        root: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"{path}: it could not be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text in UTF-8; {_SHAPE}") from error
    except yaml.MarkedYAMLError as error:
        if _is_json(text):  # which may be indented by tabs, and is read as well
            return
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: is not YAML ({error.problem}); is the indentation right?") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML; {_SHAPE}") from error
    if not isinstance(root, yaml.MappingNode):
        found = (
            "nothing" if root is None else "a list" if isinstance(root, yaml.SequenceNode) else f"{root.value!r:.60}"
        )
        raise UserError(f"{path}: holds {found}; {_SHAPE}")
    _require_each_key_once(path, root, "", set())


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _require_each_key_once(path: Path, node: Any, where: str, looked_at: set[int]) -> None:
    import yaml

    if id(node) in looked_at:  # by another name, as an anchor's
        return
    looked_at.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _require_each_key_once(path, item, where, looked_at)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[tuple[str, str], int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line, name, said = key.start_mark.line + 1, f"{where}{key.value}", (key.tag, key.value)
        if said in seen:
            raise UserError(
                f"{path}, line {line}: {name} a second time, after line {seen[said]}, which would not count; put "
                "them together"
            )
        if key.value != "<<":  # YAML's merge may come more than once
            seen[said] = line
        _require_each_key_once(path, value, f"{name}.", looked_at)
