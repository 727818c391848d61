"""Reads back the two files that every method's `test` writes, and refuses to compare what is not comparable.

Only numbers are kept: of a generations file of any length one float64 per row and numeric column, and a 64-bit hash of
each prompt. No text is held longer than its line.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lightning_rarlhf.errors import UserError
from lightning_rarlhf.functional.statistics import Interval
from lightning_rarlhf.records.generations import read_columns, read_rows
from lightning_rarlhf.records.results_file import GENERATIONS, RESULTS, file_sha256
from lightning_rarlhf.records.results_schema import read_results
from lightning_rarlhf.terminal.plain_text import first_line, name_to_show, names_to_show

Array: TypeAlias = NDArray[np.float64]

_REQUIRED = ("index", "label", "prompt_score", "score")
_SCORE_TOLERANCE = 0.05
"""how far two machines' arithmetic may move a prompt's score before it counts as another reward model's"""
_LOADING = ("dtype", "device", "batch_size")
"""what a reward's identity says of how it was run, not of which it is"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One evaluated policy: n prompts with m responses each, in ascending order of the prompts' numbers."""

    folder: Path
    identity: Mapping[str, Any]
    """``results.json`` without its metrics"""
    metrics: Mapping[str, Interval]
    """every number of ``results.json`` by its name"""
    index: Array
    """[n], the prompts' numbers in the data set"""
    prompt_hash: NDArray[np.uint64]
    """[n], of the prompts' texts"""
    columns: Mapping[str, Array]
    """[n, m] of each of `generations.read_columns`, [n, 1] where it is a number per prompt; NaN = unknown"""

    def __len__(self) -> int:
        return len(self.index)

    @property
    def confidence(self) -> float:
        """Nominal coverage of the run's intervals."""
        return float(self.identity["evaluation"]["confidence"])


def read_run(folder: Path) -> Run:
    """Read ``results.json`` and the numbers of ``generations.jsonl``.

    Args:
        folder: of the run, or the path of its ``results.json``.

    Raises:
        UserError: a file is missing or cannot be read, or the generations are not those that the results were made of.
    """
    folder = folder.parent if folder.name == RESULTS else folder
    content = read_results(folder / RESULTS)
    path = folder / GENERATIONS
    if not path.is_file():
        raise UserError(f"{path} is missing; expected the file that {folder / RESULTS} was made of; run `test` again")
    sha256 = file_sha256(path)
    if sha256 != content["generations_sha256"]:
        raise UserError(
            f"{path} does not belong to {folder / RESULTS}: sha256 {sha256[:12]}…, expected "
            f"{str(content['generations_sha256'])[:12]}…; run `test` again"
        )
    columns, hashes = _read_generations(path)
    order = np.argsort(columns["index"][:, 0], kind="stable")
    return Run(
        folder=folder,
        identity=names_to_show({name: value for name, value in content.items() if name != "metrics"}),
        metrics={name_to_show(name): _as_interval(entry) for name, entry in content["metrics"].items()},
        index=columns["index"][order, 0],
        prompt_hash=hashes[order],
        columns={name: values[order] for name, values in columns.items() if name != "index"},
    )


def require_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs whose numbers mean different things: other prompts, random numbers or rewards than the first run's.

    Raises:
        UserError: naming the first thing that differs, and the two runs.
    """
    first = runs[0]
    for run in runs[1:]:
        for what, ours, theirs in _must_agree(first, run):
            if ours != theirs:
                raise UserError(
                    f"{what} differ: {first.folder} has {_short(ours)}, {run.folder} has {_short(theirs)}; "
                    "report runs that were tested alike"
                )
        _require_same_prompts(first, run)


def _must_agree(first: Run, run: Run) -> Iterator[tuple[str, Any, Any]]:
    data = [each.identity.get("data") or {} for each in (first, run)]
    for key, what in (
        ("name", "datasets"),
        ("revision", "dataset revisions"),
        ("prompt_tokens", "prompt lengths"),
        ("seed", "data seeds"),
    ):
        yield what, data[0].get(key), data[1].get(key)
    sha256 = [(each.get("sha256") or {}).get("test") for each in data]
    yield "test prompts (sha256)", sha256[0], sha256[1]
    evaluation = [each.identity["evaluation"] for each in (first, run)]
    yield "evaluation seeds", evaluation[0].get("seed"), evaluation[1].get("seed")
    for key, what in (
        ("toxicity_of", "scores that toxicity is read off"),
        ("perplexity_judge", "judges of perplexity"),
        ("perplexity_texts", "numbers of human texts for perplexity"),
    ):
        yield what, evaluation[0].get(key), evaluation[1].get(key)
    texts = [(each.identity.get("human_texts") or {}).get("sha256") for each in (first, run)]
    if None not in texts:  # results of version 1 do not tell, and a test without texts has no perplexity
        yield "human texts for perplexity (sha256)", texts[0], texts[1]
    yield "confidence levels of the intervals", first.confidence, run.confidence
    yield "reward models", _reward(first.identity.get("reward")), _reward(run.identity.get("reward"))
    judges = [each.get("judges") or {} for each in evaluation]
    for name in sorted(set(judges[0]) & set(judges[1])):
        yield f"judges called {name}", _reward(judges[0][name]), _reward(judges[1][name])
    yield "meanings of KL", _kl_meaning(first), _kl_meaning(run)
    yield "numbers of prompts", len(first), len(run)
    yield "responses per prompt", first.columns["score"].shape[1], run.columns["score"].shape[1]


def _require_same_prompts(first: Run, run: Run) -> None:
    differ = int(((first.index != run.index) | (first.prompt_hash != run.prompt_hash)).sum())
    if differ:
        raise UserError(
            f"prompts differ: {differ} of {len(run)} in {run.folder} are not those of {first.folder}; "
            "report runs that were tested alike"
        )
    gap = np.abs(first.columns["prompt_score"] - run.columns["prompt_score"]).max()
    if gap > _SCORE_TOLERANCE:
        raise UserError(
            f"reward models differ: a prompt's own score is {gap:.3g} apart in {first.folder} and {run.folder}; "
            "report runs that were scored by one reward model"
        )


def _kl_meaning(run: Run) -> str:
    """What KL is measured from; the same for all versions of the schema where a response may end at once."""
    least = (run.identity.get("sampling") or {}).get("min_new_tokens") or 0
    if least > 0 and run.identity["schema_version"] < 3:
        return "a reference that may have been kept from ending before min_new_tokens (schema_version below 3)"
    return "the reference as it is"


def _reward(reward: Any) -> Any:
    """What a reward's identity says of which it is, folders by their real path."""
    if not isinstance(reward, dict):
        return reward
    kept = {key: value for key, value in reward.items() if key not in _LOADING}
    name = kept.get("pretrained")
    if isinstance(name, str) and os.path.isdir(name):
        kept["pretrained"] = os.path.realpath(name)
    return kept


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict) else str(value)
    return f"{text[:12]}…" if len(text) == 64 and text.isalnum() else text


# results.json


def _as_interval(entry: Mapping[str, Any]) -> Interval:
    """An end that is null is unknown, hence infinite."""
    low, high = entry["low"], entry["high"]
    return Interval(
        estimate=float(entry["estimate"]),
        low=-math.inf if low is None else float(low),
        high=math.inf if high is None else float(high),
        confidence=float(entry["confidence"]),
        n=int(entry["n"]),
        method=str(entry["method"]),
    )


# generations.jsonl


def _read_generations(path: Path) -> tuple[dict[str, Array], NDArray[np.uint64]]:
    """Numeric columns [n, m or 1], and a hash of each prompt [n], in the order of the file."""
    try:
        columns = {name: values.reshape(len(values), -1) for name, values in read_columns(path).items()}
        hashes = np.frombuffer(array("Q", _prompt_hashes(path)), dtype=np.uint64)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{path} cannot be read ({reason}); run `test` again") from None
    for name in _REQUIRED:
        bad = int((~np.isfinite(columns[name])).sum())
        if bad:
            raise UserError(f"{path}: {name} is no number in {bad} rows; run `test` again")
    if len(np.unique(columns["index"])) != len(hashes):
        raise UserError(f"{path}: a prompt's number comes up again, expected each prompt once; run `test` again")
    return columns, hashes


def _prompt_hashes(path: Path) -> Iterator[int]:
    """64 bits of each prompt's text; a prompt's responses stand together."""
    before = None
    for row in read_rows(path):
        if row["index"] != before:
            text = str(row["prompt"]).encode(errors="surrogatepass")
            yield int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
        before = row["index"]
