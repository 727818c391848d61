"""Small data files in the publishers' formats, with texts that say which row they are."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]

WORDS = (
    "the",
    "film",
    "was",
    "long",
    "and",
    "warm",
    "but",
    "its",
    "end",
    "came",
    "too",
    "soon",
    "for",
    "many",
    "of",
    "us",
)


def text(number: int, characters: int = 0) -> str:
    """A text of its own for each number, at least so many characters long."""
    words = [f"row {number}:"]
    while sum(len(word) + 1 for word in words) <= characters or len(words) < 3:
        words.append(WORDS[(number * 7 + len(words)) % len(WORDS)])
    return " ".join(words)


def write_csv(path: Path, rows: list[Row]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[Row]) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def imdb_rows(positive: int, negative: int, *, characters: int = 220, start: int = 0) -> list[Row]:
    labels = [0] * negative + [1] * positive
    return [{"text": text(start + n, characters), "label": label} for n, label in enumerate(labels)]


def jigsaw_rows(non_toxic: int, toxic: int, *, characters: int = 70, start: int = 0) -> list[Row]:
    labels = [0] * non_toxic + [1] * toxic
    return [
        {"id": f"{start + n:016x}", "comment_text": text(start + n, characters), "toxic": label}
        for n, label in enumerate(labels)
    ]


def toxicity_rows(non_toxic: int, toxic: int, *, start: int = 0) -> list[Row]:
    values = [0.125] * non_toxic + [0.75] * toxic
    return [
        {
            "filename": f"{start + n}.txt",
            "prompt": {"text": text(start + n), "toxicity": value, "threat": 0.0},
            "continuation": {"text": " never used", "toxicity": 0.5},
        }
        for n, value in enumerate(values)
    ]
