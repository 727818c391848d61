from __future__ import annotations

from pathlib import Path

import pytest

import lightning_rarlhf
from lightning_rarlhf.records.results_file import code_sha256


def test_the_codes_hash_is_of_every_source_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the library, not of the folder that the function stands in."""
    read: list[Path] = []
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or b"")
    code_sha256()
    assert sorted(read) == sorted(Path(lightning_rarlhf.__file__).parent.rglob("*.py"))
