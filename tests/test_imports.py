"""The house has rooms on five floors: a file imports only from below, and light modules stay light.

CONTRIBUTING.md describes the floors; `PLACES` is the table. A new file that has no place in it fails with "place me".
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOUSE = ("lightning_rarlhf", "callbacks", "datamodules", "train")


@dataclass(frozen=True)
class Place:
    """A file, or a room (its path ends in a slash): every file of a folder that has no place of its own."""

    path: str
    floor: int
    """what it may import from others, see `_third_party_violations`"""


def _floor(number: int, *paths: str) -> tuple[Place, ...]:
    return tuple(Place(path, number) for path in paths)


PLACES = (
    # mathematics and plain data; torch, numpy and the standard library
    *_floor(
        0,
        "lightning_rarlhf/__init__.py",
        "lightning_rarlhf/errors.py",
        "lightning_rarlhf/terminal/",
        "lightning_rarlhf/one_move.py",
        "lightning_rarlhf/splits.py",
        "lightning_rarlhf/number_types.py",
        "lightning_rarlhf/functional/risk.py",
        "lightning_rarlhf/functional/checks.py",
        "lightning_rarlhf/config.py",
        "lightning_rarlhf/functional/",
        "lightning_rarlhf/data_types.py",
        "lightning_rarlhf/records/method.py",
        "lightning_rarlhf/records/provenance.py",
        "lightning_rarlhf/records/results_schema.py",
        "lightning_rarlhf/stepping/stopwatch.py",
        "lightning_rarlhf/stepping/step_mean.py",
        "lightning_rarlhf/stepping/batch_parts.py",
        "lightning_rarlhf/trainer/freed_memory.py",
        "lightning_rarlhf/trainer/precision.py",
        "lightning_rarlhf/trainer/run_length.py",
        "lightning_rarlhf/command_line/class_keys.py",
        "lightning_rarlhf/command_line/null_values.py",
        "lightning_rarlhf/command_line/config_file.py",
    ),
    # networks, and what talks to them
    *_floor(
        1,
        "lightning_rarlhf/layers/",
        "lightning_rarlhf/language_model.py",
        "lightning_rarlhf/policy.py",
        "lightning_rarlhf/cached_decoding/",
        "lightning_rarlhf/sampling.py",
        "lightning_rarlhf/loading/",
        "lightning_rarlhf/reference.py",
        "lightning_rarlhf/rewards/",
        "lightning_rarlhf/reward_models.py",
        "lightning_rarlhf/kl_control.py",
        "lightning_rarlhf/quark/",
    ),
    # the phases of an iteration, and what is made of a run; usable from a notebook, without Lightning
    *_floor(
        2,
        "lightning_rarlhf/distributed.py",
        "lightning_rarlhf/metrics.py",
        "lightning_rarlhf/figures.py",
        "lightning_rarlhf/records/",
        "lightning_rarlhf/checkpoints/",
        "lightning_rarlhf/trainer/sharding.py",
        "lightning_rarlhf/stepping/guards.py",
        "lightning_rarlhf/rollout.py",
        "lightning_rarlhf/ppo_update.py",
        "lightning_rarlhf/decoding/",
        "lightning_rarlhf/export/",
        "lightning_rarlhf/report/",
        "lightning_rarlhf/certify/",
        "lightning_rarlhf/compare/",
        "lightning_rarlhf/memory/",
        # what the quickstart is made of stands lower than the program that runs it
        "lightning_rarlhf/quickstart/",
    ),
    # Lightning
    *_floor(
        3,
        "datamodules/",
        "lightning_rarlhf/trainer/",
        "lightning_rarlhf/stepping/",
        "lightning_rarlhf/base_modules/",
        "callbacks/",
        "lightning_rarlhf/sft_module.py",
        "lightning_rarlhf/ppo_module.py",
        "lightning_rarlhf/quark_module.py",
        "lightning_rarlhf/rect_module.py",
        "lightning_rarlhf/reward_module.py",
        "lightning_rarlhf/decoding_module.py",
    ),
    # knows everybody
    *_floor(
        4,
        "lightning_rarlhf/command_line/",
        "train.py",
        "lightning_rarlhf/quickstart/__main__.py",
        "lightning_rarlhf/certify/__main__.py",
        "lightning_rarlhf/export/__main__.py",
        "lightning_rarlhf/memory/__main__.py",
        "lightning_rarlhf/report/__main__.py",
        "lightning_rarlhf/compare/__main__.py",
    ),
)
"""The house from the ground up. A file imports from its own room and from what stands before it in this table."""

STRANGERS = (
    "callbacks/",
    "datamodules/",
    *(p.path for p in PLACES if re.fullmatch(r"lightning_rarlhf/\w+_module\.py", p.path)),
)
"""They never import each other: a data module serves any method, a method runs with any callback."""

GROUND_FLOOR = {"torch", "numpy", "jsonargparse"}
"""numpy comes with torch; jsonargparse gives the settings their ranges"""
GROUND_FLOOR_IN_FUNCTIONS = {"scipy", "yaml"}
LIGHTNING_FLOOR = 3
HEAVY = {
    "bitsandbytes",
    "datasets",
    "huggingface_hub",
    "matplotlib",
    "pandas",
    "peft",
    "scipy",
    "tokenizers",
    "transformers",
}
"""imported inside functions only, so that `train.py --help` stays near Lightning's own start-up time"""


@dataclass(frozen=True)
class Import:
    """One imported module or name."""

    module: str
    """dotted, as written after `import` or `from`"""
    name: str
    """what `from module import name` takes from it; empty for `import module`"""
    line: int
    runs: str
    """when: "at import", "in a function", or "never" (types only)"""

    @property
    def root(self) -> str:
        return self.module.split(".")[0]


def read_imports(source: str) -> list[Import]:
    """Every import of `source`, however deep."""
    found: list[Import] = []
    _collect(ast.parse(source), "at import", found)
    return found


def _collect(node: ast.AST, runs: str, found: list[Import]) -> None:
    if isinstance(node, ast.Import):
        found += [Import(alias.name, "", node.lineno, runs) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import, write the full name"
        found += [Import(node.module or "", alias.name, node.lineno, runs) for alias in node.names]
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        for child in node.body:
            _collect(child, "never", found)
        for child in node.orelse:
            _collect(child, runs, found)
    else:
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            _collect(child, "in a function" if inside and runs == "at import" else runs, found)


def house_files() -> list[str]:
    folders = [path for part in HOUSE[:-1] for path in (ROOT / part).rglob("*.py")]
    return sorted(path.relative_to(ROOT).as_posix() for path in [*folders, ROOT / "train.py"])


def place_of(path: str) -> Place:
    """The file's own place, else its room."""
    places = {place.path: place for place in PLACES}
    room = path.rpartition("/")[0] + "/"
    place = places.get(path) or places.get(room) or places.get(path.split("/")[0] + "/")
    assert place, f"{path}: place me! Add this file, or its room, to PLACES in tests/test_imports.py"
    return place


def target_of(imported: Import) -> str:
    """The file of the house that `imported` names, as a path from the root."""
    for dotted in filter(None, (imported.name and f"{imported.module}.{imported.name}", imported.module)):
        stem = dotted.replace(".", "/")
        for path in (f"{stem}.py", f"{stem}/__init__.py"):
            if (ROOT / path).is_file():
                return path
    raise AssertionError(f"line {imported.line}: no file of the house is called {imported.module}")


def violations(path: str, source: str) -> Iterator[str]:
    """What `source`, were it the file at `path`, imports against the rules; one line each."""
    place = place_of(path)
    for imported in read_imports(source):
        where = f"{path}:{imported.line}"
        if imported.root in HOUSE:
            target = target_of(imported)
            if not _may_import(place, place_of(target)):
                yield f"{where}: {place.path} may not import {target}"
            if imported.name.startswith("_") and not imported.name.startswith("__"):
                yield f"{where}: {imported.name} is private to {target}"
        elif imported.root not in sys.stdlib_module_names and imported.runs != "never":
            yield from _third_party_violations(where, place.floor, imported)


def _may_import(place: Place, target: Place) -> bool:
    if place == target:
        return True
    strangers = place.path in STRANGERS and target.path in STRANGERS
    return PLACES.index(target) < PLACES.index(place) and not strangers


def _third_party_violations(where: str, floor: int, imported: Import) -> Iterator[str]:
    root, lazy = imported.root, imported.runs == "in a function"
    if root in {"lightning", "lightning_fabric", "pytorch_lightning"} and floor < LIGHTNING_FLOOR:
        yield f"{where}: {root} begins on floor {LIGHTNING_FLOOR}, this is floor {floor}"
    elif floor == 0 and root not in GROUND_FLOOR and not (lazy and root in GROUND_FLOOR_IN_FUNCTIONS):
        yield f"{where}: floor 0 is torch, numpy and the standard library, not {root}"
    elif root in HEAVY and not lazy:
        yield f"{where}: import {root} inside the function that needs it"


@pytest.mark.parametrize("path", house_files())
def test_a_file_imports_only_from_its_room_and_from_below(path: str) -> None:
    assert list(violations(path, (ROOT / path).read_text())) == []


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.path)
def test_every_place_in_the_table_exists(place: Place) -> None:
    assert (ROOT / place.path).exists(), f"{place.path} is gone: take it out of PLACES"


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("lightning_rarlhf/config.py", "from lightning_rarlhf.policy import ActorCritic", "may not import"),
        ("lightning_rarlhf/config.py", "from lightning_rarlhf import policy", "may not import"),
        ("lightning_rarlhf/policy.py", "def f():\n    import lightning_rarlhf.rollout", "may not import"),
        ("lightning_rarlhf/layers/new.py", "from lightning_rarlhf.policy import ActorCritic", "may not import"),
        ("callbacks/new.py", "import datamodules", "may not import datamodules"),
        ("callbacks/new.py", "from lightning_rarlhf.ppo_module import RiskAversePPOModule", "may not import"),
        ("callbacks/new.py", "from lightning_rarlhf.base_modules.language_module import _secret", "_secret is private"),
        (
            "datamodules/new.py",
            "from lightning_rarlhf.base_modules.language_module import LanguageModule",
            "may not import",
        ),
        ("lightning_rarlhf/rollout.py", "def f():\n    import lightning.pytorch as pl", "begins on floor 3"),
        ("lightning_rarlhf/functional/new.py", "import rich", "floor 0 is torch"),
        ("lightning_rarlhf/policy.py", "import transformers", "inside the function"),
        ("lightning_rarlhf/policy.py", "class A:\n    from transformers import B", "inside the function"),
    ],
)
def test_the_walk_sees_a_violation(path: str, source: str, complaint: str) -> None:
    assert [complaint in line for line in violations(path, source)] == [True]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lightning_rarlhf/functional/new.py", "def f():\n    import scipy.stats"),
        ("lightning_rarlhf/policy.py", "def f():\n    import transformers"),
        ("lightning_rarlhf/policy.py", "if TYPE_CHECKING:\n    import transformers"),
        ("lightning_rarlhf/policy.py", "from lightning_rarlhf.functional import masked, kl"),
        ("datamodules/new.py", "import lightning.pytorch as pl\nfrom lightning_rarlhf import __version__"),
    ],
)
def test_the_walk_lets_the_rest_pass(path: str, source: str) -> None:
    assert list(violations(path, source)) == []


def test_a_file_outside_the_table_asks_to_be_placed() -> None:
    with pytest.raises(AssertionError, match=r"lightning_rarlhf/new\.py: place me"):
        list(violations("lightning_rarlhf/new.py", ""))


def test_what_is_imported_is_in_the_requirements() -> None:
    pinned = re.findall(r"^([\w-]+)", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)
    pinned = [{"PyYAML": "yaml"}.get(name, name) for name in pinned]
    roots = {i.root for path in house_files() for i in read_imports((ROOT / path).read_text())}
    assert roots - set(pinned) - set(HOUSE) - sys.stdlib_module_names == set()


def test_the_ground_floor_loads_no_heavy_library() -> None:
    functional = [
        f"lightning_rarlhf.functional.{p.stem}" for p in (ROOT / "lightning_rarlhf/functional").glob("[!_]*.py")
    ]
    light = ["lightning_rarlhf", "lightning_rarlhf.config", "lightning_rarlhf.data_types", *sorted(functional)]
    heavy = ["bitsandbytes", "datasets", "lightning", "matplotlib", "pandas", "peft", "scipy", "transformers"]
    script = f"import importlib, sys\nfor name in {light}:\n    importlib.import_module(name)\n"
    script += f"    print(*[name + ' loads ' + h for h in {heavy} if h in sys.modules], sep='\\n', end='')\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
