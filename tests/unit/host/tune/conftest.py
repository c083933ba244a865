"""Syncing takes milliseconds on a busy disk, and a test has dozens: here it is only counted."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The descriptors that were synced. Processes that tests start sync really."""
    seen: list[int] = []
    monkeypatch.setattr(os, "fsync", seen.append)
    return seen
