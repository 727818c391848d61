"""The house has floors: a file imports only from floors below its own, and light modules stay light.

CONTRIBUTING.md describes the floors; `PLACES` is the table. A new file that is not in it fails with "place me".
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
    """Where a file, or every file under a folder (its path ends in a slash), lives; the first match counts."""

    path: str
    floor: int
    peers: tuple[str, ...] = ()
    """places of the same floor that it may import from all the same"""


PLACES = (
    # 0: mathematics and plain data; torch, numpy and the standard library
    Place("lightning_rarlhf/__init__.py", 0),
    Place("lightning_rarlhf/errors.py", 0),
    Place("lightning_rarlhf/one_move.py", 0, ("lightning_rarlhf/errors.py",)),
    Place("lightning_rarlhf/one_line_parser.py", 0, ("lightning_rarlhf/plain_text.py",)),
    Place(
        "lightning_rarlhf/config.py",
        0,
        (
            "lightning_rarlhf/errors.py",
            "lightning_rarlhf/functional/checks.py",
            "lightning_rarlhf/number_types.py",
        ),
    ),
    Place("lightning_rarlhf/number_types.py", 0, ("lightning_rarlhf/errors.py",)),
    Place("lightning_rarlhf/data_types.py", 0, ("lightning_rarlhf/errors.py",)),
    Place("lightning_rarlhf/method.py", 0),
    Place("lightning_rarlhf/step_mean.py", 0),
    Place("lightning_rarlhf/run_length.py", 0, ("lightning_rarlhf/errors.py",)),
    Place("lightning_rarlhf/precision.py", 0, ("lightning_rarlhf/errors.py",)),
    Place("lightning_rarlhf/class_keys.py", 0),
    Place(
        "lightning_rarlhf/null_values.py",
        0,
        ("lightning_rarlhf/class_keys.py", "lightning_rarlhf/errors.py", "lightning_rarlhf/number_types.py"),
    ),
    Place("lightning_rarlhf/config_file.py", 0, ("lightning_rarlhf/errors.py",)),
    Place(
        "lightning_rarlhf/provenance.py",
        0,
        ("lightning_rarlhf/redaction.py", "lightning_rarlhf/method.py", "lightning_rarlhf/__init__.py"),
    ),
    Place("lightning_rarlhf/quiet.py", 0, ("lightning_rarlhf/plain_text.py",)),
    Place("lightning_rarlhf/results_schema.py", 0, ("lightning_rarlhf/errors.py", "lightning_rarlhf/plain_text.py")),
    Place("lightning_rarlhf/splits.py", 0),
    Place("lightning_rarlhf/redaction.py", 0),
    Place("lightning_rarlhf/plain_text.py", 0),
    Place("lightning_rarlhf/stopwatch.py", 0),
    Place("lightning_rarlhf/freed_memory.py", 0),
    Place("lightning_rarlhf/side_thread.py", 0),
    Place("lightning_rarlhf/checked_scores.py", 0, ("lightning_rarlhf/errors.py",)),
    Place("lightning_rarlhf/batch_parts.py", 0, ("lightning_rarlhf/data_types.py",)),
    Place(
        "lightning_rarlhf/functional/",
        0,
        ("lightning_rarlhf/functional/", "lightning_rarlhf/config.py", "lightning_rarlhf/errors.py"),
    ),
    # 1: models, and what talks to them
    Place("lightning_rarlhf/hub.py", 1),
    Place("lightning_rarlhf/own_code.py", 1),
    Place("lightning_rarlhf/kl_control.py", 1),
    Place("lightning_rarlhf/classifier.py", 1, ("lightning_rarlhf/hub.py", "lightning_rarlhf/own_code.py")),
    Place("lightning_rarlhf/tokenizer.py", 1, ("lightning_rarlhf/hub.py", "lightning_rarlhf/own_code.py")),
    Place("lightning_rarlhf/fused_gelu.py", 1),
    Place("lightning_rarlhf/packed_linear.py", 1),
    Place("lightning_rarlhf/blocks.py", 1),
    Place("lightning_rarlhf/rehearsal.py", 1),
    Place("lightning_rarlhf/last_block.py", 1, ("lightning_rarlhf/blocks.py", "lightning_rarlhf/cpu_attention.py")),
    Place("lightning_rarlhf/frozen_layers.py", 1, ("lightning_rarlhf/blocks.py",)),
    Place("lightning_rarlhf/cpu_attention.py", 1),
    Place("lightning_rarlhf/cpu_linear.py", 1),
    Place(
        "lightning_rarlhf/policy.py",
        1,
        (
            "lightning_rarlhf/blocks.py",
            "lightning_rarlhf/cpu_attention.py",
            "lightning_rarlhf/cpu_linear.py",
            "lightning_rarlhf/frozen_layers.py",
            "lightning_rarlhf/fused_gelu.py",
            "lightning_rarlhf/last_block.py",
            "lightning_rarlhf/plain_logits.py",
        ),
    ),
    Place("lightning_rarlhf/plain_logits.py", 1),
    Place("lightning_rarlhf/lora.py", 1, ("lightning_rarlhf/blocks.py", "lightning_rarlhf/policy.py")),
    Place(
        "lightning_rarlhf/empty_policy.py",
        1,
        (
            "lightning_rarlhf/frozen_layers.py",
            "lightning_rarlhf/hub.py",
            "lightning_rarlhf/lora.py",
            "lightning_rarlhf/own_code.py",
            "lightning_rarlhf/plain_logits.py",
            "lightning_rarlhf/policy.py",
            "lightning_rarlhf/rehearsal.py",
        ),
    ),
    Place(
        "lightning_rarlhf/policy_loading.py",
        1,
        (
            "lightning_rarlhf/empty_policy.py",
            "lightning_rarlhf/hub.py",
            "lightning_rarlhf/lora.py",
            "lightning_rarlhf/own_code.py",
            "lightning_rarlhf/policy.py",
        ),
    ),
    Place(
        "lightning_rarlhf/reference.py",
        1,
        (
            "lightning_rarlhf/empty_policy.py",
            "lightning_rarlhf/hub.py",
            "lightning_rarlhf/lora.py",
            "lightning_rarlhf/policy.py",
            "lightning_rarlhf/policy_loading.py",
            "lightning_rarlhf/tokenizer.py",
        ),
    ),
    Place("lightning_rarlhf/retries.py", 1),
    Place(
        "lightning_rarlhf/classifier_label.py",
        1,
        (
            "lightning_rarlhf/classifier.py",
            "lightning_rarlhf/cpu_linear.py",
            "lightning_rarlhf/fused_gelu.py",
            "lightning_rarlhf/hub.py",
            "lightning_rarlhf/own_code.py",
        ),
    ),
    Place(
        "lightning_rarlhf/reward_models.py",
        1,
        (
            "lightning_rarlhf/checked_scores.py",
            "lightning_rarlhf/classifier.py",
            "lightning_rarlhf/classifier_label.py",
            "lightning_rarlhf/own_code.py",
            "lightning_rarlhf/retries.py",
        ),
    ),
    Place("lightning_rarlhf/kv_cache.py", 1),
    Place("lightning_rarlhf/fixed_cache.py", 1, ("lightning_rarlhf/kv_cache.py",)),
    Place(
        "lightning_rarlhf/compiled_decoding.py",
        1,
        (
            "lightning_rarlhf/cpu_linear.py",
            "lightning_rarlhf/fixed_cache.py",
            "lightning_rarlhf/kv_cache.py",
            "lightning_rarlhf/packed_linear.py",
            "lightning_rarlhf/policy.py",
        ),
    ),
    Place("lightning_rarlhf/sampling.py", 1, ("lightning_rarlhf/kv_cache.py", "lightning_rarlhf/policy.py")),
    Place(
        "lightning_rarlhf/reading_on.py",
        1,
        (
            "lightning_rarlhf/blocks.py",
            "lightning_rarlhf/kv_cache.py",
            "lightning_rarlhf/policy.py",
            "lightning_rarlhf/sampling.py",
        ),
    ),
    Place("lightning_rarlhf/policy_rules.py", 1),
    Place(
        "lightning_rarlhf/quark_policy.py",
        1,
        ("lightning_rarlhf/policy.py", "lightning_rarlhf/policy_loading.py", "lightning_rarlhf/sampling.py"),
    ),
    Place("lightning_rarlhf/trained_weights.py", 1),
    # 2: the phases of an iteration, and what is made of a run; usable from a notebook, without Lightning
    Place("lightning_rarlhf/rollout.py", 2),
    Place("lightning_rarlhf/scoring_ahead.py", 2, ("lightning_rarlhf/rollout.py",)),
    Place("lightning_rarlhf/distributed.py", 2),
    Place("lightning_rarlhf/safe_shards.py", 2, ("lightning_rarlhf/checkpoint_file.py",)),
    Place(
        "lightning_rarlhf/sharded_checkpoint.py",
        2,
        (
            "lightning_rarlhf/checkpoint_file.py",
            "lightning_rarlhf/distributed.py",
            "lightning_rarlhf/results_file.py",
            "lightning_rarlhf/safe_shards.py",
        ),
    ),
    Place("lightning_rarlhf/sharding.py", 2),
    Place("lightning_rarlhf/guards.py", 2, ("lightning_rarlhf/distributed.py", "lightning_rarlhf/sharding.py")),
    Place("lightning_rarlhf/crash_bundle.py", 2),
    Place("lightning_rarlhf/ppo_update.py", 2, ("lightning_rarlhf/distributed.py", "lightning_rarlhf/guards.py")),
    Place("lightning_rarlhf/decoding/", 2, ("lightning_rarlhf/decoding/", "lightning_rarlhf/results_file.py")),
    Place("lightning_rarlhf/quark_pool.py", 2),
    Place("lightning_rarlhf/quark_batch.py", 2, ("lightning_rarlhf/quark_pool.py",)),
    Place("lightning_rarlhf/metrics.py", 2),
    Place("lightning_rarlhf/validation.py", 2, ("lightning_rarlhf/metrics.py",)),
    Place("lightning_rarlhf/perplexity.py", 2),
    Place("lightning_rarlhf/generations.py", 2, ("lightning_rarlhf/metrics.py",)),
    Place("lightning_rarlhf/results_file.py", 2),
    Place(
        "lightning_rarlhf/evaluation.py",
        2,
        ("lightning_rarlhf/metrics.py", "lightning_rarlhf/generations.py", "lightning_rarlhf/results_file.py"),
    ),
    Place("lightning_rarlhf/memory/__main__.py", 4, ("lightning_rarlhf/cli.py", "train.py")),
    Place("lightning_rarlhf/memory/", 2, ("lightning_rarlhf/memory/",)),
    Place("lightning_rarlhf/export/__main__.py", 4),
    Place("lightning_rarlhf/export/", 2, ("lightning_rarlhf/export/",)),
    Place("lightning_rarlhf/resume.py", 2),
    Place("lightning_rarlhf/reward_report.py", 2, ("lightning_rarlhf/figures.py",)),
    Place("lightning_rarlhf/figures.py", 2),
    Place("lightning_rarlhf/results.py", 2, ("lightning_rarlhf/generations.py", "lightning_rarlhf/results_file.py")),
    Place(
        "lightning_rarlhf/report/",
        2,
        ("lightning_rarlhf/report/", "lightning_rarlhf/results.py", "lightning_rarlhf/figures.py"),
    ),
    Place("lightning_rarlhf/certify/__init__.py", 0),
    Place("lightning_rarlhf/certify/claims.py", 1),
    Place("lightning_rarlhf/certify/trials.py", 2, ("lightning_rarlhf/results_file.py",)),
    Place("lightning_rarlhf/checkpoint_file.py", 2),
    Place("lightning_rarlhf/consent.py", 2),
    Place("lightning_rarlhf/going_on.py", 3),
    # 3: Lightning; data and callbacks know neither each other nor a method's module, only the modules' common base
    Place("lightning_rarlhf/cli_errors.py", 3, ("lightning_rarlhf/wrong_values.py",)),
    Place("lightning_rarlhf/wrong_values.py", 3),
    Place("lightning_rarlhf/guarded_module.py", 3),
    Place("lightning_rarlhf/evaluated_module.py", 3, ("lightning_rarlhf/guarded_module.py",)),
    Place("lightning_rarlhf/recorded_module.py", 3, ("lightning_rarlhf/evaluated_module.py",)),
    Place("lightning_rarlhf/strategies.py", 3),
    Place("lightning_rarlhf/optimizing.py", 3),
    Place("lightning_rarlhf/run_start.py", 3),
    Place(
        "lightning_rarlhf/language_module.py",
        3,
        ("lightning_rarlhf/recorded_module.py", "lightning_rarlhf/optimizing.py", "lightning_rarlhf/strategies.py"),
    ),
    Place("lightning_rarlhf/manual_updater.py", 3),
    Place(
        "lightning_rarlhf/reward_module.py",
        3,
        ("lightning_rarlhf/guarded_module.py", "lightning_rarlhf/optimizing.py", "lightning_rarlhf/strategies.py"),
    ),
    Place(
        "lightning_rarlhf/ppo_module.py",
        3,
        (
            "lightning_rarlhf/language_module.py",
            "lightning_rarlhf/guarded_module.py",
            "lightning_rarlhf/manual_updater.py",
        ),
    ),
    Place(
        "lightning_rarlhf/quark_module.py",
        3,
        (
            "lightning_rarlhf/language_module.py",
            "lightning_rarlhf/guarded_module.py",
            "lightning_rarlhf/optimizing.py",
            "lightning_rarlhf/manual_updater.py",
        ),
    ),
    Place(
        "lightning_rarlhf/sft_module.py", 3, ("lightning_rarlhf/language_module.py", "lightning_rarlhf/optimizing.py")
    ),
    Place(
        "lightning_rarlhf/rect_module.py",
        3,
        ("lightning_rarlhf/language_module.py", "lightning_rarlhf/optimizing.py", "lightning_rarlhf/strategies.py"),
    ),
    Place("lightning_rarlhf/decoding_module.py", 3, ("lightning_rarlhf/language_module.py",)),
    Place("callbacks/", 3, ("callbacks/", "lightning_rarlhf/language_module.py")),
    Place("datamodules/", 3, ("datamodules/",)),
    # 4: knows everybody
    Place("lightning_rarlhf/cli.py", 4),
    Place("train.py", 4, ("lightning_rarlhf/cli.py",)),
    Place("lightning_rarlhf/quickstart/__main__.py", 4, ("lightning_rarlhf/cli.py", "train.py")),
    Place("lightning_rarlhf/certify/__main__.py", 4),
    Place("lightning_rarlhf/compare/__main__.py", 4),
    Place("lightning_rarlhf/compare/", 2, ("lightning_rarlhf/compare/", "lightning_rarlhf/results_file.py")),
    # What the quickstart is made of stands lower than the program that runs it.
    Place("lightning_rarlhf/quickstart/", 2, ("lightning_rarlhf/quickstart/",)),
)

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
    for place in PLACES:
        if path == place.path or (place.path.endswith("/") and path.startswith(place.path)):
            return place
    raise AssertionError(f"{path}: place me! Add this file and its floor to PLACES in tests/test_imports.py")


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
            floor = place_of(target).floor
            peer = any(target == p or (p.endswith("/") and target.startswith(p)) for p in place.peers)
            if floor > place.floor or (floor == place.floor and not peer):
                yield f"{where}: floor {place.floor} may not import {target} of floor {floor}"
            if imported.name.startswith("_") and not imported.name.startswith("__"):
                yield f"{where}: {imported.name} is private to {target}"
        elif imported.root not in sys.stdlib_module_names and imported.runs != "never":
            yield from _third_party_violations(where, place.floor, imported)


def _third_party_violations(where: str, floor: int, imported: Import) -> Iterator[str]:
    root, lazy = imported.root, imported.runs == "in a function"
    if root in {"lightning", "lightning_fabric", "pytorch_lightning"} and floor < LIGHTNING_FLOOR:
        yield f"{where}: {root} begins on floor {LIGHTNING_FLOOR}, this is floor {floor}"
    elif floor == 0 and root not in GROUND_FLOOR and not (lazy and root in GROUND_FLOOR_IN_FUNCTIONS):
        yield f"{where}: floor 0 is torch, numpy and the standard library, not {root}"
    elif root in HEAVY and not lazy:
        yield f"{where}: import {root} inside the function that needs it"


@pytest.mark.parametrize("path", house_files())
def test_a_file_imports_only_from_the_floors_below(path: str) -> None:
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
        ("lightning_rarlhf/tokenizer.py", "from lightning_rarlhf.policy import ActorCritic", "may not import"),
        ("callbacks/new.py", "import datamodules", "may not import datamodules"),
        ("callbacks/new.py", "from lightning_rarlhf.ppo_module import RiskAversePPOModule", "may not import"),
        ("callbacks/new.py", "from lightning_rarlhf.language_module import _secret", "_secret is private"),
        ("datamodules/new.py", "from lightning_rarlhf.language_module import LanguageModule", "may not import"),
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
