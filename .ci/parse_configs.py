"""Parse every shipped YAML, and every command that the documentation shows, with the real command line, in one process.

Part of `make check`.

A file of its own is parsed alone. An overlay (no `class_path` under `model` and `data`) is parsed on top of the task of
its own name, else of its folder's files, else of every task. Nothing is instantiated, loaded or downloaded.

In a command a shell variable is taken for 1, for a task's name where it names a configuration, and for nothing where it
stands alone; files that the reader is to write are left out.
"""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
_VARIABLE = re.compile(r"\$\{?\w+\}?")


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


def commands() -> dict[str, str]:
    """Arguments of every `train.py` command of the documentation, with the first page that shows it."""
    shown: dict[str, str] = {}
    for page in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            for found in re.finditer(
                r"train\.py ((?:fit|validate|test|predict) .*)", re.sub(r"\s*\\\n\s*", " ", block)
            ):
                if ".help " not in found[1]:
                    shown.setdefault(found[1].removesuffix("; }"), str(page.relative_to(ROOT)))
    return shown


def arguments(command: str) -> list[str]:
    """As the shell would give them, with `--print_config`."""
    command = (
        command.replace('"${@:2}"', "").replace("configs/$TASK", "configs/jigsaw").replace("sft/$TASK", "sft/jigsaw")
    )
    words: list[str] = []
    for word in shlex.split(command, comments=True):
        option = bool(words) and words[-1].startswith("--")
        if not _VARIABLE.fullmatch(word) or option:
            words.append(_VARIABLE.sub("1", word))
    theirs = [n for n, word in enumerate(words) if word == "--config" and not (ROOT / words[n + 1]).is_file()]
    kept = [word for n, word in enumerate(words) if n not in theirs and n - 1 not in theirs]
    return [*kept, "--print_config"]


def complaint(args: list[str]) -> str:
    """What the command line says against these arguments; empty if nothing."""
    sys.argv = ["train.py", *args]
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
    files = {
        " + ".join(str(path.relative_to(ROOT)) for path in stack): [
            "fit",
            *(word for path in stack for word in ("--config", str(path))),
            "--print_config",
        ]
        for stack in stacks()
    }
    shown = {f"{page}, {command}": arguments(command) for command, page in commands().items()}
    wrong = 0
    with contextlib.chdir(ROOT):
        for name, args in {**files, **shown}.items():
            problem = complaint(args)
            if problem:
                wrong += 1
                print(f"{name}: {problem}")
    print(f"configs: {len(files)} stacks and {len(shown)} commands of the documentation parsed, {wrong} wrong")
    return int(bool(wrong) or not files or not shown)


if __name__ == "__main__":
    sys.exit(main())
