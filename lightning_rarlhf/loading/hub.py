"""Tell within seconds whether a name can be loaded: a local folder, something cached, or a hub that answers."""

from __future__ import annotations

import json
from pathlib import Path

from lightning_rarlhf.errors import DataError, ModelError
from lightning_rarlhf.loading.model_folder import ADAPTER_FILE, is_saved_model
from lightning_rarlhf.terminal.plain_text import first_line

_TIMEOUT = 10.0  # seconds; the hub's own client would retry for most of a minute


def require_model(name: str, revision: str | None = None) -> None:
    """Return if `name` is a model folder, a cached hub id, or a hub id that answers.

    Raises:
        ModelError: a folder without ``config.json``, a path that does not exist, or a hub id out of reach.
    """
    if not name.strip():
        raise ModelError("a model's name is empty; give a hub id, or a folder written by save_pretrained")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not is_saved_model(folder):
            raise ModelError(f"{name}: the folder holds no config.json; give a folder written by save_pretrained")
        return
    if folder.exists():
        raise ModelError(f"{name}: is a file; give a folder written by save_pretrained, or a hub id")
    if _looks_like_path(name):
        raise ModelError(f"{name}: no such folder; give a folder written by save_pretrained, or a hub id")
    reason = _unreachable(name, "model", "config.json", revision)
    if reason:
        raise ModelError(
            f"model {name!r}: {reason}; give a reachable hub id or a local folder written by save_pretrained"
        )


def split_revision(name: str) -> tuple[str, str | None]:
    """``owner/model@revision`` → its two parts; any other name, and a path that there is, has no revision.

    >>> split_revision("gpt2@v1"), split_revision("gpt2"), split_revision("./a@b")
    (('gpt2', 'v1'), ('gpt2', None), ('./a@b', None))
    """
    before, sign, revision = name.rpartition("@")
    if not sign or not before or not revision or _looks_like_path(name) or Path(name).expanduser().exists():
        return name, None
    return before, revision


def base_of_adapter(name: str, revision: str | None = None) -> tuple[str, str | None] | None:
    """Name and revision of the base if `name` is a folder or hub id of a peft adapter; None if it is no adapter.

    Raises:
        ModelError: an adapter that does not say what it was trained on.
    """
    from transformers.utils.peft_utils import find_adapter_config_file

    folder = Path(name).expanduser()
    if folder.is_dir():
        found = None if (folder / "config.json").is_file() else str(folder / ADAPTER_FILE)
    else:
        found = find_adapter_config_file(name, revision=revision)
    if found is None or not Path(found).is_file():
        return None
    settings = json.loads(Path(found).read_text(encoding="utf-8"))
    base, pinned = settings.get("base_model_name_or_path"), settings.get("revision")
    if not base:
        raise ModelError(f"{name}: its {ADAPTER_FILE} names no base model; set base_model_name_or_path there")
    return str(base), None if pinned is None else str(pinned)


def require_reachable_dataset(repo_id: str, revision: str | None = None) -> None:
    """Return if the hub answers for dataset `repo_id`, or parts of it are cached.

    Raises:
        DataError: the hub is out of reach, or knows no such dataset.
    """
    reason = _unreachable(repo_id, "dataset", "README.md", revision)
    if reason and not _prepared_before(repo_id):
        raise DataError(f"dataset {repo_id!r}: {reason}; give a local copy with --data.path FOLDER")


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _unreachable(repo_id: str, kind: str, cached_file: str, revision: str | None) -> str | None:
    """Why `repo_id` cannot be loaded, or None if it can."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        if isinstance(
            huggingface_hub.try_to_load_from_cache(repo_id, cached_file, repo_type=kind, revision=revision), str
        ):
            return None
    except errors.HFValidationError:
        return "neither a folder nor a valid hub id"
    if huggingface_hub.is_offline_mode():
        return "not in the local cache, and HF_HUB_OFFLINE=1 forbids asking the hub"
    api = huggingface_hub.HfApi()
    try:
        api.repo_info(repo_id, repo_type=kind, revision=revision, timeout=_TIMEOUT)
    except errors.HfHubHTTPError as error:
        return f"the hub refused it (HTTP {error.response.status_code}: no such {kind}, or no access)"
    except Exception as error:  # network failures come in the HTTP library's own classes
        return f"the hub cannot be reached ({type(error).__name__}: {first_line(error)})"
    return None


def _prepared_before(repo_id: str) -> bool:
    """Whether `datasets` holds a prepared copy that it can open without the hub."""
    from datasets import config

    folder = repo_id.replace("/", "___")
    return any((Path(config.HF_DATASETS_CACHE) / name).is_dir() for name in {folder, folder.lower()})
