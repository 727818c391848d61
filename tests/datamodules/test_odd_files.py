"""Data files as people have them: whatever is in them, the right rows come out, or one clear line says why not."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from datamodules import IMDBDataModule, JigsawDataModule, RealToxicityPromptsDataModule, TextFileDataModule
from datamodules.rows import RowSchema, flatten, to_rows
from datamodules.sources import read_file
from lightning_rarlhf.errors import DataError
from tests.datamodules.data_files import write_csv, write_jsonl, write_parquet

# `datasets` leaves a CSV file that it cannot read to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

ODD = (
    "",
    " ",
    "null",
    "NaN",
    "007",
    "1e5",
    "true",
    'say "hi", he said',
    "'",
    '"',
    '""',
    "a,b\tc;d",
    "line\nbreak",
    "line\r\nbreak",
    "old\rmac",
    "nul\x00nul",
    "\x00",
    "bell\x07 esc\x1b[31m del\x7f",
    "\x85nel \u2028 \u2029",
    "\ufeffbom inside",
    "café Ünïcödé",
    "漢字とかな",
    "שלום עולם",
    "مرحبا \u202eبالعالم\u202c",  # noqa: RUF001
    "👩‍👩‍👧‍👦 👍🏽 🇫🇷",
    "e\u0301 \u0130 ﬃ",
    "\U0010fffd",
    '{"json": [1]}',
    "\\n not a break \\",
    "=1+1",
    "#comment",
)
TEXTS = st.lists(
    st.one_of(st.none(), st.sampled_from(ODD), st.text(st.characters(codec="utf-8"), max_size=40)),
    min_size=1,
    max_size=6,
)
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252")
FORMATS = ("csv", "tsv", "jsonl", "json", "parquet")


def write(path: Path, texts: list[str | None], encoding: str) -> None:
    """The file as a program that knows the format would write it."""
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table({"text": pyarrow.array(texts, pyarrow.string()), "n": list(range(len(texts)))})
        pyarrow.parquet.write_table(table, path)
        return
    rows = [{"text": text, "n": number} for number, text in enumerate(texts)]
    if path.suffix == ".jsonl":
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif path.suffix == ".json":
        content = json.dumps(rows, ensure_ascii=False)
    else:
        file = io.StringIO(newline="")
        delimiter = "\t" if path.suffix == ".tsv" else ","
        writer = csv.DictWriter(file, ["text", "n"], delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
        content = file.getvalue()
    path.write_bytes(content.encode(encoding))


def read(path: Path) -> list[str] | DataError:
    """The texts that the data modules would see, or their error; anything else is a failure of the test."""
    try:
        rows = to_rows(flatten(read_file(path)), RowSchema(text="text"), str(path))
        return list(rows["text"])
    except DataError as error:
        return error


def require_right(path: Path, texts: list[str | None]) -> bool:
    """Whether it was read; what was read must be right, and what was refused be refused in a line."""
    found = read(path)
    if isinstance(found, DataError):
        assert path.name in str(found)
        assert len(str(found).splitlines()) == 1
        return False
    assert found == [text or "" for text in texts]
    return True


_files = itertools.count()


@pytest.mark.parametrize("ending", FORMATS)
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(texts=TEXTS)
@example(texts=list(ODD))
@example(texts=["x" * 2**20, None, "👩‍👩‍👧" * 2**15, 'quoted "' + "y" * 2**20])
def test_utf8_files_are_read_as_they_are(tmp_path, ending, texts):
    path = tmp_path / f"{next(_files)}.{ending}"
    write(path, texts, "utf-8")
    assert require_right(path, texts)


@pytest.mark.parametrize("encoding", ENCODINGS[1:])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
def test_other_encodings_are_read_right_or_refused(tmp_path, ending, encoding):
    for number, texts in enumerate((["plain"] * 3, ["café", "naïve", "Ünïcödé"], ["ok", "\xa0\xff", "ÿþ"])):
        path = tmp_path / f"{number}.{ending}"
        write(path, texts, encoding)
        assert require_right(path, texts) or encoding != "utf-8-sig"


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    content=st.one_of(st.binary(min_size=1, max_size=200), st.text(max_size=80).map(str.encode)),
    ending=st.sampled_from(FORMATS),
)
@example(content=b'text\n"never closed', ending="csv")
@example(content=b"text,n\na,1,2,3\n", ending="csv")
@example(content=b"\x00\x00\x00\x00", ending="csv")
@example(content=b'{"text": "a"}\n{"text": ', ending="jsonl")
@example(content=b'{"text": "\\ud800"}\n', ending="jsonl")
@example(content=b'{"text": {"text": 1}}\n[1, 2]\n', ending="jsonl")
@example(content=b"PAR1 but not really PAR1", ending="parquet")
def test_whatever_the_bytes_there_is_no_traceback(tmp_path, content, ending):
    path = tmp_path / f"{next(_files)}.{ending}"
    path.write_bytes(content)
    found = read(path)
    if isinstance(found, DataError):
        assert len(str(found).splitlines()) == 1
    else:
        assert all(isinstance(text, str) for text in found)


LONG = [(text or "") + " and then a sentence that goes on and on, as long as the shortest that is kept" for text in ODD]


def test_every_data_module_reads_odd_texts_as_they_are(tmp_path):
    jigsaw = [{"id": n, "comment_text": text, "toxic": n % 2 if n % 5 else ""} for n, text in enumerate(LONG)]
    toxicity = [None if n % 5 == 0 else n / 100 for n in range(len(LONG))]
    rtp = [{"prompt": {"text": text, "toxicity": tox}} for text, tox in zip(LONG, toxicity, strict=True)]
    imdb = [{"text": text, "label": n % 2} for n, text in enumerate(LONG)]
    for folder, writer, rows, ending in (
        ("jigsaw", write_csv, jigsaw, "csv"),
        ("rtp", write_jsonl, rtp, "jsonl"),
        ("imdb", write_parquet, imdb, "parquet"),
    ):
        (tmp_path / folder).mkdir()
        for split in ("train", "test"):
            writer(tmp_path / folder / f"{split}.{ending}", rows)
    modules = (
        JigsawDataModule(path=str(tmp_path / "jigsaw")),
        RealToxicityPromptsDataModule(path=str(tmp_path / "rtp")),
        IMDBDataModule(path=str(tmp_path / "imdb")),
        TextFileDataModule(path=str(tmp_path / "imdb" / "train.parquet")),
    )
    for module in modules:
        for raw in module.read().values():
            flat = flatten(raw)
            rows = to_rows(flat, module.schema(flat.column_names), type(module).__name__)
            assert list(rows["text"]) == LONG
            missing = [n for n, label in enumerate(rows["label"]) if label == -1]
            if isinstance(module, JigsawDataModule | RealToxicityPromptsDataModule):
                assert missing == list(range(0, len(LONG), 5))
