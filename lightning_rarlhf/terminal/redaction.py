"""Takes secrets out of what is written or shown: tokens, keys, passwords, credentials in addresses."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"

_SECRET_KEY = re.compile(
    r"^token$|(?:^|[_.\-])(?:(?:hf|hub|huggingface|auth|access|api|bearer|refresh|github|wandb)[_\-]?token|api[_\-]?key"
    r"|access[_\-]?key|private[_\-]?key|secret(?:[_\-]?key)?|password|passwd|passphrase|credentials?|authorization)$",
    re.IGNORECASE,
)
"""of a mapping: `token`, `hf_token` and `api_key` are secrets, `eos_token` and `max_new_tokens` are not"""
_CREDENTIALS = re.compile(r"(?<=://)[^/\s:@'\"]+(?::[^/\s@'\"]*)?(?=@)")
"""`user:password` before an address's host"""
_QUERY = re.compile(r"(?<=[?&])((?:access_?)?token|api_?key|sig(?:nature)?|X-Amz-[\w-]+|key)=[^&\s'\"]+", re.IGNORECASE)
_TOKENS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|api_org_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|AKIA[A-Z0-9]{16}|xox[abprs]-[\w-]{10,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)"
)
"""the shapes of the well-known services' tokens"""
_ENVIRONMENT = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY")
_LEAST = 8
"""characters of an environment's secret that are worth a search: a shorter one would match by chance"""


def redacted_text(text: str) -> str:
    """`text` without credentials, tokens of a known shape, and the values of the environment's secret variables."""
    for name in _ENVIRONMENT:
        value = os.environ.get(name, "")
        if len(value) >= _LEAST:
            text = text.replace(value, REDACTED)
    text = _CREDENTIALS.sub(REDACTED, text)
    text = _QUERY.sub(lambda found: f"{found[1]}={REDACTED}", text)
    return _TOKENS.sub(REDACTED, text)


def redacted_yaml(text: str) -> str:
    """A YAML document without secrets: its comment at the top and its order stay, whatever its values look like."""
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return REDACTED  # what cannot be read cannot be searched
    if content is None:
        return redacted_text(text)
    comment = "".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    clean = yaml.safe_dump(redacted(content), sort_keys=False, allow_unicode=True, width=math.inf)
    return redacted_text(comment) + clean


def is_secret(key: str) -> bool:
    """Whether a setting of this name holds a secret."""
    return bool(_SECRET_KEY.search(key))


def redacted(value: Any) -> Any:
    """A copy of plain data, however nested, without secrets."""
    if isinstance(value, str):
        return redacted_text(value)
    if isinstance(value, Mapping):
        return {redacted(key): _redacted_item(key, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return value


def _redacted_item(key: Any, value: Any) -> Any:
    if isinstance(key, str) and is_secret(key) and value is not None:
        return REDACTED
    return redacted(value)
