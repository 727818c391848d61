"""The trials of a certificate, out of a finished generations file: one score per fresh prompt, or a refusal."""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_rarlhf.errors import DataError
from lightning_rarlhf.functional.checks import Array
from lightning_rarlhf.records.results_file import GENERATIONS, PREDICTIONS, RESULTS
from lightning_rarlhf.records.results_schema import read_results

_SPENT = {
    "train": "trained on",
    "val": "validated on, which chose the checkpoint",
}
"""splits whose prompts prove nothing, and why"""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """One score per prompt, and where they are from."""

    scores: Array
    """f64 [n], of each prompt's draw 0"""
    file: Path
    sha256: str
    """of the file"""
    prompts: dict[str, int]
    """how many are of each split; "predict" = a file of the user's own, whose freshness no file tells"""
    ignored_draws: int
    """further completions of the same prompts; they are no trials of their own"""
    repeated_texts: int
    """prompts whose text an earlier one has, under another number"""
    results: dict[str, Any] | None
    """the results file beside it without its metrics, checked against the hash; None = there is none"""


def read_trials(where: Path, score: str, first_index: Mapping[str, int], *, without_results: bool = False) -> Trials:
    """Read the finished generations at `where`.

    Args:
        where: the file, or the folder of a run that was tested.
        score: ``score``, or ``judge/<name>`` for that of a held-out judge.
        first_index: number of the first prompt of each split; a lower number is of a file of the user's own.
        without_results: accept a file that no results file vouches for.

    Raises:
        DataError: if the file is missing, unfinished, corrupt or not the one that the results file describes, a
            score is missing or not finite, a completion is there twice, or prompts were used to train or validate.
    """
    path = _find(where)
    if not without_results:
        _require_results(path)
    digest, scores, ignored = hashlib.sha256(), array("d"), 0
    seen: set[tuple[int, int]] = set()
    splits: Counter[str] = Counter()
    texts: Counter[int] = Counter()
    for place, line in _lines(path):
        digest.update(line)
        row = _record(line, place)
        number, draw = _whole(row, "index", place), _whole(row, "draw", place) if "draw" in row else 0
        if (number, draw) in seen:
            raise DataError(f"{place}: prompt {number}, draw {draw} is there twice; give each completion once")
        seen.add((number, draw))
        if draw:
            ignored += 1
            continue
        scores.append(_score(row, score, place))
        splits[split_of(number, first_index)] += 1
        if isinstance(row.get("prompt"), str):
            texts[hash(row["prompt"])] += 1
    _require_fresh(path, splits)
    _require_first_draws(path, seen)
    return Trials(
        scores=np.array(scores, dtype=np.float64),
        file=path,
        sha256=digest.hexdigest(),
        prompts=dict(splits),
        ignored_draws=ignored,
        repeated_texts=sum(count - 1 for count in texts.values()),
        results=_results(path, digest.hexdigest()),
    )


def split_of(number: int, first_index: Mapping[str, int]) -> str:
    """Split that prompt `number` is of.

    >>> split_of(7, {"train": 10, "val": 20}), split_of(12, {"train": 10, "val": 20})
    ('predict', 'train')
    """
    begun = [split for split, first in first_index.items() if number >= first]
    return max(begun, key=lambda split: first_index[split], default="predict")


def freshness_notes(results: Mapping[str, Any]) -> list[str]:
    """What a results file leaves open of whether the policy saw the prompts: an index tells a split of its data only.

    Test rows of one choice of rows (`data.seed`) may be training or validation rows of another.
    """
    settings = (results.get("training") or {}).get("settings") or {}
    fitted, tested = settings.get("data"), results.get("data")
    if not isinstance(fitted, dict) or not isinstance(tested, dict):
        return ["no record tells on which prompts the policy was trained; that these are fresh is for you to know"]
    name, options = str(fitted.get("class_path")).rpartition(".")[2], fitted.get("init_args")
    seed = options.get("seed") if isinstance(options, dict) else None
    if (name, seed) == (tested.get("class"), tested.get("seed")):
        return []
    said = (
        f"the policy was trained on prompts of {name} with data.seed {seed}, these are of {tested.get('class')} with "
        f"data.seed {tested.get('seed')}; that none of them was trained or validated on is for you to know"
    )
    return [said]


def _find(where: Path) -> Path:
    path = where / GENERATIONS if where.is_dir() else where
    if path.is_file():
        return path
    if path.with_name(path.name + ".partial").exists():
        raise DataError(f"{path}: not finished, only its .partial is there; let the test finish, or run it again")
    if where.is_dir() and (where / PREDICTIONS).exists():
        raise DataError(f"{where}: no {GENERATIONS}; to certify on your own prompts name the file {PREDICTIONS} in it")
    raise DataError(f"{path}: no such file; run `python train.py test` first, or name its {GENERATIONS}")


def _require_results(path: Path) -> None:
    """Refuse a file from which lines may have been taken away without a trace."""
    if path.name == GENERATIONS and path.with_name(RESULTS).exists():
        return
    if path.name == GENERATIONS:
        reason = f"no {RESULTS} beside it tells whether it is whole; run `python train.py test` again, or vouch for it"
    else:
        reason = f"nothing tells whether it is whole, as {RESULTS} does of {GENERATIONS}; if it is, vouch for it"
    raise DataError(f"{path}: {reason} yourself with --without_results")


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    empty = True
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                empty = False
                yield f"{path}:{number}", line
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if empty:
        raise DataError(f"{path}: empty; run `python train.py test` again")


def _record(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise DataError(f"{place}: not a JSON object; the file is damaged, run `python train.py test` again")
    return row


def _whole(row: dict[str, Any], name: str, place: str) -> int:
    value = row.get(name)
    if type(value) is not int or value < 0:
        raise DataError(f"{place}: {name} is {json.dumps(value)}, expected a number from 0")
    return value


def _score(row: dict[str, Any], name: str, place: str) -> float:
    kind, _, judge = name.partition("/")
    if kind == "score" and not judge:
        value = row.get("score")
    elif kind == "judge" and judge:
        judges = row.get("judges")
        judges = judges if isinstance(judges, dict) else {}
        if judge not in judges:
            known = ", ".join(f"judge/{each}" for each in judges)
            raise DataError(f"{place}: no {name}; expected score{', ' + known if known else ', the only one here'}")
        value = judges[judge]
    else:
        raise DataError(f"score: got {name!r}, expected score or judge/<name>")
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < sys.float_info.max:
        raise DataError(f"{place}: {name} is {json.dumps(value)}, expected a finite number for every completion")
    return float(value)


def _require_fresh(path: Path, splits: Mapping[str, int]) -> None:
    for split, why in _SPENT.items():
        if splits.get(split):
            raise DataError(
                f"{path}: {splits[split]:,} prompts are of the {split} split, those the run {why}; give fresh prompts"
            )


def _require_first_draws(path: Path, seen: set[tuple[int, int]]) -> None:
    without = {number for number, _ in seen} - {number for number, draw in seen if draw == 0}
    if without:
        raise DataError(
            f"{path}: {len(without):,} prompts have no draw 0, {min(without)} for one; give the whole file, so that "
            "which completion counts is not a matter of choice"
        )


def _results(path: Path, sha256: str) -> dict[str, Any] | None:
    """Only `test` writes the pair of files; predictions may lie beside the results of a test."""
    results = path.with_name(RESULTS)
    if path.name != GENERATIONS or not results.exists():
        return None
    content = read_results(results)
    if content["generations_sha256"] != sha256:
        raise DataError(
            f"{path}: not the file that {results.name} beside it describes: its SHA-256 begins {sha256[:12]}, expected "
            f"{str(content.get('generations_sha256'))[:12]}; run `python train.py test` again"
        )
    return {name: value for name, value in content.items() if name != "metrics"}
