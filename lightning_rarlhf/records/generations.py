"""The file of a method's generations: one JSON object a line, written as they come and read as a stream.

Whatever the number of prompts, no more than one batch of texts is in memory. Documented in docs/results.md.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import operator
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_rarlhf.data_types import Samples
from lightning_rarlhf.functional.text import distinct_ngrams, repetition_rate
from lightning_rarlhf.metrics import DISTINCT
from lightning_rarlhf.one_move import or_say_why
from lightning_rarlhf.sampling import finish_reasons
from lightning_rarlhf.terminal.plain_text import escaped_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Completions:
    """One response to each prompt of a batch, and what was measured on it."""

    samples: Samples
    scores: Tensor
    """f32 [B], reward of prompt + response"""
    kl: Tensor
    """f32 [B], Σ_t log π − log π_ref, in nats"""
    judges: Mapping[str, Tensor] = field(default_factory=dict)
    """f32 [B] of each held-out judge, by its name"""


def rows_by_prompt(completions: Sequence[Completions], prompt_scores: Tensor, eos_token_ids: Tensor) -> list[list[Row]]:
    """The rows of one batch: of each prompt its completions, in the order of the draws.

    Args:
        completions: k ≥ 1 draws for the same B prompts.
        prompt_scores: f32 [B], reward of the prompts alone.
        eos_token_ids: i64 [n], tokens that end a response.
    """
    batch = completions[0].samples.batch
    prompts = {
        "index": batch.index.tolist(),
        "prompt": batch.prompts,
        "label": batch.labels.tolist(),
        "source_score": _finite(batch.source_scores),
        "prompt_score": prompt_scores.tolist(),
    }
    draws = [_rows(_response_columns(part, eos_token_ids, draw)) for draw, part in enumerate(completions)]
    return [
        [prompt | response for response in responses] for prompt, *responses in zip(_rows(prompts), *draws, strict=True)
    ]


class GenerationWriter:
    """Streams generations to ``<file>.partial``; the file itself is replaced only when all of them are written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        with or_say_why(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # a lone surrogate, which UTF-8 cannot hold, becomes the escape that JSON has for it
            self._file = self.partial.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")

    def write(self, prompts: Iterable[Sequence[Row]]) -> None:
        """Write the rows of each prompt, as `rows_by_prompt` makes them.

        Raises:
            WriteError: the disk is full, ...
        """
        with or_say_why(self.path):
            for rows in prompts:
                self._file.writelines(map(_line, rows))

    def discard(self) -> None:
        """Leave nothing of an evaluation that failed."""
        with contextlib.suppress(OSError):  # a full disk does not take what is left to write
            self._file.close()
        self.partial.unlink(missing_ok=True)

    def finish(self) -> Path:
        """Complete the partial file on disk and return its path; `publish` or `os.replace` puts it in place.

        Raises:
            WriteError: the disk is full, ...
        """
        with or_say_why(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        return self.partial

    def close(self) -> Path:
        """Put the finished file in place, and return its path."""
        os.replace(self.finish(), self.path)
        return self.path


def read_rows(generations: Path) -> Iterator[Row]:
    """The rows of a generations file, one at a time."""
    with generations.open(encoding="utf-8", newline="\n") as lines:
        yield from map(json.loads, lines)


def read_columns(generations: Path) -> dict[str, NDArray[np.float64]]:
    """The numbers of a finished generations file, as f64 arrays.

    Returns:
        [n], a number per prompt: ``index``, ``label``, ``prompt_score``, ``dist_1`` to ``dist_3``;
        [n, k], a number per completion: ``score``, ``kl``, ``tokens``, ``stopped`` (1 = ended by itself),
        ``repetition_rate``, and ``judge/<name>`` of each held-out judge. NaN = unknown.

    Raises:
        ValueError: if the file is empty or its prompts do not all have the same number of completions.
    """
    import numpy as np

    prompts = (list(rows) for _, rows in itertools.groupby(read_rows(generations), key=operator.itemgetter("index")))
    first = next(prompts, None)
    if first is None:
        raise ValueError(f"{generations}: got no row, expected one per response")
    names, numbers = [*_prompt_numbers(first), *_response_numbers(first[0])], array("d")
    for rows in itertools.chain([first], prompts):
        if len(rows) != len(first):
            raise ValueError(
                f"{generations}: prompt {rows[0]['index']} has {len(rows)} completions, the first one {len(first)}"
            )
        numbers.extend(_prompt_numbers(rows).values())
        numbers.extend(
            itertools.chain.from_iterable(zip(*(_response_numbers(row).values() for row in rows), strict=True))
        )
    return _split(np.frombuffer(numbers, dtype=np.float64), names, len(_prompt_numbers(first)), len(first))


def _split(
    numbers: NDArray[np.float64], names: Sequence[str], of_prompt: int, completions: int
) -> dict[str, NDArray[np.float64]]:
    width = of_prompt + (len(names) - of_prompt) * completions
    table = numbers.reshape(-1, width)
    columns = {name: table[:, column] for column, name in enumerate(names[:of_prompt])}
    for number, name in enumerate(names[of_prompt:]):
        start = of_prompt + number * completions
        columns[name] = table[:, start : start + completions]
    return columns


def _prompt_numbers(rows: Sequence[Row]) -> dict[str, float]:
    """What is one number for all completions of a prompt."""
    responses = [row["response"] for row in rows]
    given = {name: _number(rows[0][name]) for name in ("index", "label", "prompt_score")}
    return given | {f"dist_{n}": distinct_ngrams(responses, n) for n in DISTINCT}


def _response_numbers(row: Row) -> dict[str, float]:
    given = {name: _number(row[name]) for name in ("score", "kl", "tokens")}
    judges = {f"judge/{name}": _number(score) for name, score in row.get("judges", {}).items()}
    stopped = float(row["finish_reason"] == "stop")
    return {**given, "stopped": stopped, "repetition_rate": repetition_rate(row["response"]), **judges}


def _response_columns(part: Completions, eos_token_ids: Tensor, draw: int) -> dict[str, Sequence[Any]]:
    samples, count = part.samples, len(part.samples)
    return {
        "response": samples.responses,
        "score": part.scores.tolist(),
        "judges": list(_rows({name: scores.tolist() for name, scores in part.judges.items()})) or [{}] * count,
        "kl": _finite(part.kl),
        "tokens": samples.lengths.tolist(),
        "finish_reason": finish_reasons(samples, eos_token_ids),
        "draw": [draw] * count,
    }


def _rows(columns: Mapping[str, Iterable[Any]]) -> Iterator[Row]:
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _line(row: Row) -> str:
    r"""Legible, but nothing in it acts on a terminal, or ends a line for readers that know more line ends than \n."""
    return escaped_json(json.dumps(row, ensure_ascii=False)) + "\n"


def _finite(values: Tensor) -> list[float | None]:
    """JSON has neither NaN nor infinity: what is unknown is null."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
