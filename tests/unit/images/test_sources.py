"""data: and file: URLs: what they hold, and what is refused with a reason."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.core.errors import RequestError
from hearth.engine.images import sources
from hearth.engine.images.sources import (
    decode_base64,
    read_data_url,
    read_file_url,
    scheme_of,
)

MAX_BYTES = 1000


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        ("data:image/png;base64,AA==", "data"),
        ("DATA:,", "data"),
        ("https://x/y", "https"),
        ("HTTP://x", "http"),
        ("file:///x", "file"),
    ],
)
def test_the_scheme_of_a_url(url: str, scheme: str) -> None:
    assert scheme_of(url) == scheme


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "is empty"),
        ("iVBORw0KGgo=", "begins with 'iVBORw0KGgo='"),
        ("/etc/passwd", "begins with '/etc/passwd'"),
        ("ftp://host/x.png", "begins with 'ftp://host/x.png'"),
        ("x" * 1000, "begins with"),
        ("data", "begins with 'data'"),
    ],
)
def test_another_scheme_is_refused(url: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        scheme_of(url)
    assert said in caught.value.message
    assert len(caught.value.message) < 200
    assert "data:image/png;base64," in str(caught.value.hint)


@given(st.binary(max_size=200))
def test_what_was_encoded_comes_back(data: bytes) -> None:
    if data:
        found = read_data_url(f"data:Image/PNG;charset=x;base64,{base64.b64encode(data).decode()}")
        assert (found.data, found.media_type) == (data, "image/png")


@pytest.mark.parametrize("size", [1, 5, 6, 7, 12, 100])
def test_long_data_is_decoded_piece_by_piece(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(sources, "_CHUNK_CHARS", 8)
    data = os.urandom(size)
    text = base64.b64encode(data).decode()
    assert decode_base64(text) == data
    with pytest.raises(RequestError, match="not base64"):
        decode_base64("AAAAAA==" + text)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("data:image/png;base64", "has no comma"),
        ("data:image/svg+xml,<svg/>", "not marked as base64: 'data:image/svg"),
        ("data:image/png;base64,", "no data behind its comma"),
        ("data:image/png;base64,hello world!", "' ' is character 6 of 12"),
        ("data:image/png;base64,AA-_", "'-' is character 3"),
        ("data:image/png;base64,AAAA\nAAAA", r"'\n' is character 5"),
        ("data:image/png;base64,AAAA%3D", "'%' is character 5"),
        ("data:image/png;base64,AAAAA", "its 5 characters are no multiple of 4"),
        ("data:image/png;base64,AA=A", "= stands elsewhere"),
        ("data:image/png;base64,AAAA====", "= stands elsewhere"),
        ("data:image/png;base64,täxt", "'ä' is character 2"),
    ],
)
def test_what_is_no_base64_is_shown_with_its_place(url: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_data_url(url)
    assert said in caught.value.message


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A directory that is allowed, with a file that is not beside it."""
    base = tmp_path / "allowed"
    (base / "sub").mkdir(parents=True)
    (base / "sub" / "a b.png").write_bytes(b"inside")
    (base / "large.png").write_bytes(b"x" * (MAX_BYTES + 1))
    (tmp_path / "secret.png").write_bytes(b"outside")
    (tmp_path / "allowed-too").mkdir()
    (tmp_path / "allowed-too" / "x.png").write_bytes(b"outside")
    (base / "escape").symlink_to(tmp_path / "secret.png")
    (base / "up").symlink_to(tmp_path)
    (base / "alias.png").symlink_to(base / "sub" / "a b.png")
    os.mkfifo(base / "pipe")
    return base


def url_of(path: Path | str) -> str:
    return f"file://{path}"


@pytest.mark.parametrize("name", ["sub/a%20b.png", "sub/../sub/a%20b.png", "alias.png"])
def test_files_below_the_directory_are_read(shelf: Path, name: str) -> None:
    assert read_file_url(url_of(shelf / name), str(shelf), MAX_BYTES).data == b"inside"
    local = f"file://localhost{shelf}/{name}"
    assert read_file_url(local, str(shelf), MAX_BYTES).data == b"inside"
    assert read_file_url(url_of(shelf / name), "/", MAX_BYTES).data == b"inside"


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "..%2fsecret.png",
        "%2e%2e/secret.png",
        "escape",
        "up/secret.png",
        "../allowed-too/x.png",
        "../does-not-exist",
        "up/does-not-exist",
    ],
)
def test_what_lies_elsewhere_is_refused_whether_it_exists_or_not(shelf: Path, name: str) -> None:
    with pytest.raises(RequestError, match="does not lie below --allowed-local-media-path"):
        read_file_url(f"file://{shelf}/{name}", str(shelf), MAX_BYTES)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.png", "No such file"),
        ("sub", "no regular file"),
        ("pipe", "no regular file"),
        ("large.png", "1001 B or more, permitted are 1000 B"),
        ("a%00b", "cannot be read"),
        ("x.png?size=1", "names no absolute path"),
        ("x.png#top", "names no absolute path"),
        ("n" * 300, "File name too long"),
    ],
)
def test_what_cannot_be_read_is_told(shelf: Path, name: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        read_file_url(f"file://{shelf}/{name}", str(shelf), MAX_BYTES)


@pytest.mark.parametrize("url", ["file:x.png", "file://host/x.png", "file://[x/y"])
def test_other_forms_are_refused(shelf: Path, url: str) -> None:
    with pytest.raises(RequestError, match=r"file: URL|no absolute path"):
        read_file_url(url, str(shelf), MAX_BYTES)


def test_without_the_setting_no_file_is_read(shelf: Path) -> None:
    with pytest.raises(RequestError) as caught:
        read_file_url(url_of(shelf / "alias.png"), "", MAX_BYTES)
    assert "--allowed-local-media-path" in str(caught.value.hint)


def test_a_directory_that_is_a_link_itself_is_followed(shelf: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(shelf)
    for base in (link, shelf):
        found = read_file_url(url_of(link / "alias.png"), str(base), MAX_BYTES)
        assert found.data == b"inside"
