"""A configuration file as it is written: what is no YAML of settings by name is named with its line."""

from __future__ import annotations

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

    try:
        root: Any = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"{path}: it could not be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text in UTF-8; {_SHAPE}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: is not YAML ({error.problem}); is the indentation right?") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML; {_SHAPE}") from error
    if not isinstance(root, yaml.MappingNode):
        found = (
            "nothing" if root is None else "a list" if isinstance(root, yaml.SequenceNode) else f"{root.value!r:.60}"
        )
        raise UserError(f"{path}: holds {found}; {_SHAPE}")
    _require_each_key_once(path, root, "")


def _require_each_key_once(path: Path, node: Any, where: str) -> None:
    import yaml

    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _require_each_key_once(path, item, where)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        line, name = key.start_mark.line + 1, f"{where}{key.value}"
        if key.value in seen:
            raise UserError(
                f"{path}, line {line}: {name} a second time, after line {seen[key.value]}, which would not count; put "
                "them together"
            )
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":  # YAML's merge may come more than once
            seen[key.value] = line
        _require_each_key_once(path, value, f"{name}.")
