"""Parse every shipped YAML with the real command line, in one process; part of `make check`.

A file of its own is parsed alone. An overlay (no `class_path` under `model` and `data`) is parsed on top of the task of
its own name, else of its folder's files, else of every task. Nothing is instantiated, loaded or downloaded.
"""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"


def stacks() -> list[list[Path]]:
    """Every command's list of --config files, bases before overlays."""
    files = sorted(CONFIGS.rglob("*.yaml"))
    complete = [path for path in files if not _is_overlay(path)]
    return [stack for path in files for stack in ([[path]] if path in complete else _on_its_bases(path, complete))]


def _on_its_bases(overlay: Path, complete: list[Path]) -> list[list[Path]]:
    tasks = [path for path in complete if path.parent == CONFIGS]
    namesakes = [path for path in tasks if path.name == overlay.name]
    neighbours = [path for path in complete if path.parent == overlay.parent]
    return [[base, overlay] for base in namesakes or neighbours or tasks]


def _is_overlay(path: Path) -> bool:
    content = yaml.safe_load(path.read_text()) or {}
    return not all("class_path" in (content.get(part) or {}) for part in ("model", "data"))


def complaint(stack: list[Path]) -> str:
    """What the command line says against this list of files; empty if nothing."""
    sys.argv = ["train.py", "fit", *(word for path in stack for word in ("--config", str(path))), "--print_config"]
    output, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    except SystemExit as end:
        if end.code in (None, 0) and output.getvalue():
            return ""
    return errors.getvalue().strip() or "--print_config printed nothing"


def main() -> int:
    """Parse them all; 1 if one does not parse, or if there is none."""
    sys.path.insert(0, str(ROOT))
    found = stacks()
    wrong = 0
    for stack in found:
        problem = complaint(stack)
        if problem:
            wrong += 1
            print(f"{' + '.join(str(path.relative_to(ROOT)) for path in stack)}: {problem}")
    print(f"configs: {len(found)} stacks parsed, {wrong} wrong")
    return int(bool(wrong) or not found)


if __name__ == "__main__":
    sys.exit(main())
