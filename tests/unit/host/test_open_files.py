"""A server raises its own limit of open files, within what it may."""

from __future__ import annotations

import resource

import pytest

from hearth.host.open_files import MOST_OPEN_FILES, raise_open_files


@pytest.mark.parametrize(
    ("soft", "hard", "limit", "reason"),
    [
        (1024, 65536, 65536, "the hard limit"),
        (65536, 65536, 65536, "it is there already"),
        (1024, resource.RLIM_INFINITY, MOST_OPEN_FILES, "more than needed"),
        (1024, 1 << 30, MOST_OPEN_FILES, "more than needed"),
        (1 << 25, 1 << 30, 1 << 25, "it is there already"),
    ],
)
def test_the_soft_limit_is_raised_to_the_hard_one(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, limit: int, reason: str
) -> None:
    seen = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: seen.append(limits))
    found = raise_open_files()
    assert (found.limit, found.former) == (limit, soft)
    assert reason in found.reason
    assert seen == ([] if limit == soft else [(limit, hard)])


def test_a_limit_that_cannot_be_raised_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (10, 20))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    found = raise_open_files()
    assert found.limit == 10
    assert "not allowed" in found.reason
