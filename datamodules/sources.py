"""Open files and hub datasets with the loaders of `datasets`; whatever goes wrong is one line of `DataError`."""

from __future__ import annotations

import glob
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.hub_layout import require_all_shards, saved_files
from lightning_rarlhf.errors import DataError, UserError

if TYPE_CHECKING:
    from datasets import Dataset

_TABLES = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_LOADERS = {**_TABLES, ".txt": "text"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "json": {"parse_agent_traces": False},  # a file of prompts may well have columns called type and message
    "text": {"encoding": "utf-8-sig"},  # what Windows writes begins with a byte-order mark
}
_LOOKED_AT = 1 << 16
"""bytes; UTF-16 has a zero in nearly every second one"""


def read_file(path: str | Path) -> Dataset:
    """Read one CSV, TSV, JSON, JSONL, parquet or plain text file, by its ending.

    Columns of CSV and TSV files are all text, as written, and only an empty field is missing: guessing would read 007
    as 7, the comment "null" as no comment, and fail where a column changes its looks in the middle of a large file.
    Each line of a plain text file is a row of the one column `text`.

    Raises:
        DataError: missing, empty, of another format, or not readable as what its ending says.
    """
    import datasets

    path = Path(path).expanduser()
    _require_data_file(path)
    loader = _LOADERS[path.suffix.lower()]
    cache = f"or, if it is right, delete the cache of it below {datasets.config.HF_DATASETS_CACHE}"
    remedy = f"save it again as UTF-8 text or parquet that matches its ending, {cache}"
    with _one_line_errors(str(path), remedy), _naming_line(path):
        options = _csv_options(path) if loader == "csv" else _OPTIONS.get(loader, {})
        loaded = datasets.load_dataset(
            loader, data_files=glob.escape(str(path.absolute())), split=datasets.Split.TRAIN, **options
        )
    return _not_empty(loaded, str(path))


def is_table(path: Path) -> bool:
    """Whether this is a file of rows with columns; plain text in a folder may as well be notes or a log."""
    return path.is_file() and path.suffix.lower() in _TABLES


def find_file(folder: Path, stem: str) -> Path | None:
    """The data file of `folder` called `stem`, whatever its ending; plain text only where there is no table.

    Raises:
        DataError: there are several.
    """
    named = sorted(path for path in folder.iterdir() if path.stem == stem and path.is_file())
    found = [path for path in named if is_table(path)] or [path for path in named if path.suffix.lower() in _LOADERS]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{folder}: several files could be {stem!r} ({names}); keep one")
    return found[0] if found else None


def read_hub(repo_id: str, revision: str | None, name: str | None = None) -> dict[str, Dataset]:
    """Every split of a hub dataset.

    Args:
        repo_id: `owner/name`.
        revision: commit, tag or branch; None = main.
        name: the configuration (subset) of a dataset that has several.

    Raises:
        DataError: out of reach, or not loadable without running its code.
    """
    from lightning_rarlhf.loading.hub import require_reachable_dataset

    require_reachable_dataset(repo_id, revision)
    return _load(repo_id, name, "give a local copy with --data.path, or another dataset", revision=revision)


def read_hub_folder(folder: Path, name: str | None = None) -> dict[str, Dataset]:
    """Every split of a local copy of a hub dataset, read as the hub's own, or of what ``save_to_disk`` wrote.

    Args:
        folder: see `datamodules.hub_layout`.
        name: the configuration (subset) of a dataset that has several.

    Raises:
        DataError: not loadable.
    """
    import datasets

    path, remedy = (
        str(folder.absolute()),
        "copy the dataset's folder whole; of several configurations name one (hub_config)",
    )
    if glob.has_magic(path):
        raise DataError(f"{folder}: `datasets` takes *, ? and [ in a folder's path for patterns; rename it")
    with _one_line_errors(str(folder), remedy):
        saved = saved_files(folder)
        if saved is not None:
            # not load_from_disk: what is computed of such a table would be written into the user's folder
            loader, config, files, features = "arrow", None, saved, None
        else:
            found = datasets.load_dataset_builder(path, name)
            loader, config, files, features = path, found.config.name, found.config.data_files, found.info.features
    require_all_shards(files, str(folder))
    # the files by name: of a folder with a card `datasets` would take the cache of another with equal card and name
    escaped = {str(split): [glob.escape(str(file)) for file in listed] for split, listed in files.items()}
    return _load(loader, config, remedy, source=str(folder), data_files=escaped, features=features)


def _load(path: str, name: str | None, remedy: str, *, source: str | None = None, **options: Any) -> dict[str, Dataset]:
    import datasets

    source = source or path
    with _one_line_errors(source, remedy):
        loaded = datasets.load_dataset(path, name, **options)
    return {str(split): _not_empty(rows, f"{source} ({split})") for split, rows in loaded.items()}


def read_hub_file(repo_id: str, filename: str, revision: str | None) -> Dataset:
    """One file of a hub dataset that `datasets` cannot load as a whole because it ships a loading script.

    The file is downloaded once into the hub client's cache and found there when offline.

    Raises:
        DataError: out of reach, or as for `read_file`.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    from lightning_rarlhf.loading.hub import require_reachable_dataset

    if not isinstance(try_to_load_from_cache(repo_id, filename, repo_type="dataset", revision=revision), str):
        require_reachable_dataset(repo_id, revision)
    with _one_line_errors(f"{repo_id}/{filename}", "give a local copy with --data.path"):
        path = hf_hub_download(repo_id, filename, repo_type="dataset", revision=revision)
    return read_file(path)


def _require_data_file(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; check --data.path")
    if not path.is_file() or path.suffix.lower() not in _LOADERS:
        raise DataError(f"{path}: unknown kind of data; expected a file that ends in {', '.join(_LOADERS)}")
    if not path.stat().st_size:
        raise DataError(f"{path}: the file is empty; expected rows")
    if path.suffix.lower() == ".txt":
        with path.open("rb") as file:
            if b"\0" in file.read(_LOOKED_AT):
                raise DataError(f"{path}: has zero bytes, as UTF-16 has, expected text in UTF-8; save it again as that")


def _csv_options(path: Path) -> dict[str, Any]:
    import pandas
    from datasets import Features, Value

    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open("rb") as file:  # pandas would leave its own open where it fails
        header = pandas.read_csv(file, sep=separator, nrows=0, index_col=False)
    return {
        "sep": separator,
        "features": Features({str(name): Value("string") for name in header.columns}),
        "index_col": False,  # or a line with a field too many would shift its columns
        "keep_default_na": False,
        "na_values": [""],
    }


@contextmanager
def _naming_line(path: Path) -> Iterator[None]:
    """Name the first broken line of a JSONL file; Arrow counts rows from 0, within a block, without the empty ones."""
    try:
        yield
    except Exception as error:
        if path.suffix.lower() != ".jsonl":
            raise
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                problem = _problem_of(line)
                if problem:
                    raise DataError(
                        f"{path}, line {number}: {problem}; expected one object in braces on each line"
                    ) from error
        raise


def _problem_of(line: str) -> str | None:
    """What keeps a line from being an object of JSON; None = nothing, or an empty line."""
    if not line.strip():
        return None
    try:
        return None if isinstance(json.loads(line), dict) else "is not a JSON object"
    except json.JSONDecodeError as error:
        return f"is not JSON ({error.msg} at its character {error.pos + 1})"


def _not_empty(rows: Dataset, source: str) -> Dataset:
    if not len(rows):
        raise DataError(f"{source}: no rows; expected at least one")
    return rows


@contextmanager
def _one_line_errors(source: str, remedy: str) -> Iterator[None]:
    """Turn a loader's failure, whose class depends on format and library, into one line; keep its own log quiet."""
    import datasets

    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # pandas drops a field too many from every line, silently but for this
            warnings.filterwarnings("error", "Length of header or names does not match length of data")
            yield
    except UserError:
        raise
    except Exception as error:
        if "corresponds to no data" in str(error):
            raise DataError(f"{source}: no rows; expected at least one") from error
        cause = error.__cause__ or error
        text = " ".join(str(cause).split())[:200]
        raise DataError(f"{source}: cannot be read ({type(cause).__name__}: {text}); {remedy}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)
