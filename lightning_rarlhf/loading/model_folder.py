"""The folder of a saved model: told from others, of which an export may replace none."""

from __future__ import annotations

from pathlib import Path

from lightning_rarlhf.errors import UserError
from lightning_rarlhf.one_move import or_say_why

ADAPTER_FILE = "adapter_config.json"
"""In a folder without ``config.json``: what peft writes of an adapter, with the name of its base model."""
_CHAT_TEMPLATES = "additional_chat_templates"
"""the one folder that transformers makes in a saved model's"""


def is_saved_model(folder: Path) -> bool:
    """Whether it is of a whole model, or of an adapter."""
    return any((folder / name).is_file() for name in ("config.json", ADAPTER_FILE))


def require_replaceable(folder: Path, *sources: str | None) -> None:
    """Refuse to let a model's folder take the place of anything else, all of which would be removed.

    Args:
        folder: where a model is to be written.
        sources: folders (or hub ids) of models that the run starts from; it could not go on without them.

    Raises:
        UserError: `folder` is a file, one of `sources`, or holds something and is no folder of one saved model.
        WriteError: it cannot be looked into.
    """
    if not folder.exists():
        return
    for source in filter(None, sources):
        place = Path(source).expanduser()
        if place.exists() and place.samefile(folder):
            raise UserError(f"{folder}: the run starts from the model there, which its own would replace; name another")
    what = "is a file"
    if folder.is_dir():
        with or_say_why(folder):
            inside = sorted(folder.iterdir())
        strangers = [path for path in inside if path.is_dir() and path.name != _CHAT_TEMPLATES]
        if not inside or (is_saved_model(folder) and not strangers):
            return
        what = f"holds {(strangers or inside)[0].name} and is no saved model's"
    raise UserError(f"{folder}: {what}; a model written there would remove what is there; name a new folder")
