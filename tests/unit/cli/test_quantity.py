"""Quantities as people write them."""

from __future__ import annotations

import pytest

from hearth.cli.quantity import parse_quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("512", 512),
        ("1_000", 1000),
        ("2G", 2 << 30),
        ("2g", 2 * 10**9),
        ("512M", 512 << 20),
        ("1.5GiB", 3 << 29),
        ("25.6k", 25_600),
        ("32K", 32 << 10),
        ("3MB", 3 * 10**6),
        (" 4 kib ", 4096),
    ],
)
def test_suffixes_mean_what_they_mean_in_vllm(text: str, value: int) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["", "0", "-1", "two", "2X", "1e9", "2 G B", "nan"])
def test_anything_else_is_refused_with_what_is_permitted(text: str) -> None:
    with pytest.raises(ValueError, match="permitted"):
        parse_quantity(text)
