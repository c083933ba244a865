r"""Checksums of files, of the two kinds that hubs give.

sha256      files in LFS or Xet storage (Hugging Face), every file (ModelScope)
git-sha1    files in git itself: SHA-1 of "blob SIZE\0" and the contents (git-hash-object(1))
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["sha256", "git-sha1"]
_LENGTHS: dict[Kind, int] = {"sha256": 64, "git-sha1": 40}
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Digest:
    """A checksum, in lower-case hexadecimal digits."""

    kind: Kind
    value: str

    def __str__(self) -> str:
        return f"{self.kind} {self.value}"


def digest_or_none(kind: Kind, value: object) -> Digest | None:
    """What a server gave as a checksum, or None where it is none."""
    if not isinstance(value, str) or len(value) != _LENGTHS[kind]:
        return None
    text = value.lower()
    return Digest(kind, text) if all(c in "0123456789abcdef" for c in text) else None


def file_digest(path: Path, kind: Kind) -> Digest:
    """Of a whole file. Raises OSError."""
    found = hashlib.sha256() if kind == "sha256" else hashlib.sha1(usedforsecurity=False)
    with path.open("rb", buffering=0) as file:
        if kind == "git-sha1":
            found.update(f"blob {os.fstat(file.fileno()).st_size}\0".encode())
        buffer = memoryview(bytearray(_CHUNK))
        while num_read := file.readinto(buffer):
            found.update(buffer[:num_read])
    return Digest(kind, found.hexdigest())
