"""What a disk may do to a checkpoint."""

from __future__ import annotations

import zipfile
from pathlib import Path


def flip_a_bit_of_a_weight(path: Path) -> str:
    """Flip one bit in the middle of the largest record of torch's archive; the record's name."""
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda entry: entry.file_size)
        data = archive.read(record)
    content = bytearray(path.read_bytes())
    content[content.index(data) + len(data) // 2] ^= 1
    path.write_bytes(content)
    return record.filename
