"""Trees in memory: dozens of files a test take their time on a disk, above all to be removed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_IN_MEMORY = "/dev/shm"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """As pytest's own, and gone after the test."""
    where = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=where, prefix="hearth-test-") as name:
        yield Path(name).resolve()


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The descriptors that were synced."""
    seen: list[int] = []
    monkeypatch.setattr(os, "fsync", seen.append)
    return seen
