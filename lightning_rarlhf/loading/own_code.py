"""Models that ship Python code of their own: it runs only for a model that the user names a second time, for just that.

The code of a model runs with the rights of the user. transformers would ask on the terminal, or run it for whatever
name an overlay puts in place of the one that was trusted.
"""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from lightning_rarlhf.errors import ModelError, UserError
from lightning_rarlhf.terminal.plain_text import first_line

_trusted: set[tuple[str, str | None]] = set()


def trust(said: str | None, name: str, revision: str | None, key: str) -> None:
    """Let the code of model `name` run from now on in this process, if the user `said` so by repeating its name.

    Args:
        said: what the user gave; None = nothing.
        name: hub id or folder of the model.
        revision: of the hub.
        key: the setting's name, for messages.

    Raises:
        UserError: another name was given, or code from the hub that is not pinned to a commit.
    """
    if said is None:
        return
    if said != name:
        raise UserError(f"{key}: got {said!r}, expected the name of the model whose code may run, {name!r}, or none")
    if not Path(name).expanduser().is_dir() and not _is_commit(revision):
        raise UserError(
            f"{key}: the code of {name} can change under a branch or a tag (revision: {revision}); pin the revision to "
            "the commit that you read, 40 hexadecimal digits"
        )
    _trusted.add((name, revision))


def may_run_code(name: str, revision: str | None = None) -> bool:
    """Whether the user trusts the code of this very model and revision."""
    return (name, revision) in _trusted


def load_pretrained(kind: Any, name: str, what: str, *, revision: str | None = None, **options: Any) -> Any:
    """``kind.from_pretrained(name)``: the one door to what transformers and peft load.

    Args:
        kind: `AutoModelForCausalLM`, `AutoTokenizer`, `PeftModel`, ...
        name: hub id or folder.
        what: it should be, for a message: "a causal language model".
        revision: of the hub.
        options: passed on. Who asks for the loading info says himself which weights are missing: transformers' table of
            them is then not printed.

    Raises:
        ModelError: not there, damaged, of another kind, or with code that is not trusted or another repository's.
    """
    from safetensors import SafetensorError

    if may_run_code(name, revision):
        _require_code_of_its_own(name, revision)
    try:
        with _without_table() if options.get("output_loading_info") else nullcontext():
            # transformers would ask on the terminal if trust_remote_code were left out
            trusted = may_run_code(name, revision)
            return kind.from_pretrained(name, revision=revision, trust_remote_code=trusted, **options)
    except torch.OutOfMemoryError:
        raise
    # ImportError: of a package that a setting needs (flash attention) or a tokenizer's file format
    except (OSError, ValueError, RuntimeError, ImportError, pickle.UnpicklingError, SafetensorError) as error:
        raise load_failure(name, what, error) from error
    except Exception as error:
        if type(error) is not Exception:  # bare: the tokenizers library, about a damaged tokenizer.json
            raise
        raise load_failure(name, what, error) from error


@contextmanager
def _without_table() -> Iterator[None]:
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_no_table)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_table)


def _is_no_table(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def _require_code_of_its_own(name: str, revision: str | None) -> None:
    """Refuse a trusted model that would run code of another repository, which no commit pins: ``other/repo--file.X``.

    Raises:
        ModelError: naming that code.
    """
    from transformers.utils.hub import cached_file

    for file in ("config.json", "tokenizer_config.json"):
        path = cached_file(
            name,
            file,
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if path is None:
            continue
        try:
            settings = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{name}: its {file} is not JSON ({error})") from None
        for entry in _code_in(settings):
            repository, sign, _ = entry.partition("--")
            if sign and repository != name:
                raise ModelError(
                    f"{name}: its {file} runs code of another repository ({entry}), which trust_remote_code does not "
                    "cover; copy that code into a folder with the model and name the folder"
                )


def _code_in(settings: Any, inside: bool = False) -> Iterator[str]:
    """Every class that an ``auto_map``, however deep, names; its values may be lists."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from _code_in(value, inside or key == "auto_map")
    elif isinstance(settings, list):
        for value in settings:
            yield from _code_in(value, inside)
    elif inside and isinstance(settings, str):
        yield settings


def load_failure(name: str, what: str, error: Exception) -> ModelError:
    """The one line about a model that transformers cannot load; `what` it should have been."""
    text = str(error).strip()
    if "trust_remote_code" in text:
        return ModelError(
            f"{name}: ships code of its own, which is not run; read it, then set trust_remote_code to the model's name "
            "(and revision to its commit), or give a model that transformers knows"
        )
    if "look at the above report" in text:
        return ModelError(
            f"{name}: not {what} that transformers can load (its weights are not those of its config.json)"
        )
    return ModelError(f"{name}: not {what} that transformers can load ({first_line(error)})")


def _is_commit(revision: str | None) -> bool:
    return revision is not None and len(revision) == 40 and set(revision) <= set("0123456789abcdef")
