"""Where an image of a message comes from: the bytes behind a data: or file: URL.

`fetch` has those behind http: and https:. Nothing but a data URL is followed unless a setting of
the server allows it. Errors are RequestErrors about the URL; `loader` adds whose it is.
"""

from __future__ import annotations

import binascii
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from hearth.core.errors import RequestError
from hearth.core.units import format_bytes

_SHOWN_CHARS = 40
# Decoded at a time: decoding holds the interpreter's lock, some 1 ms for so many characters.
_CHUNK_CHARS = 1 << 20
_NO_BASE64 = re.compile(r"[^A-Za-z0-9+/=]")


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One image part of a message: `where` it stands (a path in the body), and what it names."""

    where: str
    url: str
    is_low_detail: bool = False


@dataclass(frozen=True, slots=True)
class ImageBytes:
    """A file's bytes, and the media type that came with it; empty: none."""

    data: bytes
    media_type: str = ""


def scheme_of(url: str) -> str:
    """`data`, `file`, `http` or `https`. Raises RequestError for everything else."""
    scheme = url[:6].partition(":")[0].lower()
    if scheme in ("data", "file", "http", "https") and ":" in url[:6]:
        return scheme
    if not url:
        came = "is empty"
    else:
        came = f"begins with {url[:_SHOWN_CHARS]!r}"
    raise RequestError(
        f"the URL {came} (permitted: data:image/png;base64,… and, where the server allows it, "
        "https://… and file:///…)",
        hint="put data:image/png;base64, in front of a base64 text",
    )


def read_data_url(url: str) -> ImageBytes:
    """What a data URL (RFC 2397) holds, which must be base64. Raises RequestError."""
    head, comma, text = url[len("data:") :].partition(",")
    media_type, *parameters = [part.strip().lower() for part in head.split(";")]
    if not comma:
        raise RequestError(
            f"the data URL has no comma: {url[:_SHOWN_CHARS]!r} (permitted: "
            "data:image/png;base64,…)"
        )
    if "base64" not in parameters:
        raise RequestError(
            f"the data URL is not marked as base64: {url[: len('data:') + len(head)][:80]!r} "
            "(permitted: data:image/png;base64,…)"
        )
    return ImageBytes(decode_base64(text), media_type)


def decode_base64(text: str) -> bytes:
    """Strict base64 (RFC 4648, section 4): padded, and nothing else between its characters.

    Raises RequestError, which names the first wrong character.
    """
    if not text:
        raise RequestError("the data URL holds no data behind its comma")
    if len(text) % 4 or text.endswith("==="):  # more padding than there can be passes else
        raise _not_base64(text)
    pieces: list[bytes] = []
    for start in range(0, len(text), _CHUNK_CHARS):
        part = text[start : start + _CHUNK_CHARS]
        try:
            piece = binascii.a2b_base64(part, strict_mode=True)
        except ValueError as error:  # binascii.Error is one
            raise _not_base64(text) from error
        is_last = start + _CHUNK_CHARS >= len(text)
        if not is_last and len(piece) < _CHUNK_CHARS // 4 * 3:  # padding in the middle
            raise _not_base64(text)
        pieces.append(piece)
    return b"".join(pieces)


def _not_base64(text: str) -> RequestError:
    wrong = _NO_BASE64.search(text)
    if wrong is None:
        return RequestError(
            f"the data is not base64: its {len(text):,} characters are no multiple of 4, or = "
            "stands elsewhere than at the end",
            hint="the text may have been cut off; send the whole of it, with its padding",
        )
    hints = {
        "-": "that is base64url; use + and / in place of - and _",
        "_": "that is base64url; use + and / in place of - and _",
        "%": "send the characters as they are, without percent encoding",
    }
    hint = hints.get(wrong[0], "send the bytes of an image file as base64, without line breaks")
    return RequestError(
        f"the data is not base64: {wrong[0]!r} is character {wrong.start() + 1:,} of "
        f"{len(text):,} (permitted: A–Z a–z 0–9 + / and = at the end)",
        hint=hint,
    )


def read_file_url(url: str, allowed_path: str, max_bytes: int) -> ImageBytes:
    """The file of a file: URL, if it lies below `allowed_path`, links resolved.

    Raises RequestError; of what lies elsewhere it does not tell whether it exists.
    """
    if not allowed_path:
        raise RequestError(
            "file: URLs are not permitted by this server",
            hint="send a data: URL, or start the server with --allowed-local-media-path DIRECTORY",
        )
    path = _path_of(url)
    base = Path(os.path.realpath(allowed_path))
    try:
        resolved = Path(os.path.realpath(path))
        if not resolved.is_relative_to(base):
            raise _outside(path, allowed_path)
        descriptor = os.open(resolved, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            # What was opened counts: a directory on the way may have become a link meanwhile.
            opened = Path(os.path.realpath(f"/proc/self/fd/{descriptor}"))
            if opened != resolved and not opened.is_relative_to(base):
                raise _outside(path, allowed_path)
            return ImageBytes(_read(descriptor, path, max_bytes))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RequestError(f"the file {_shown(path)} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL in the path
        raise RequestError(f"the file {_shown(path)} cannot be read: {error}") from error


def _path_of(url: str) -> str:
    """Raises RequestError."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise RequestError(f"{_shown(url)} is not a file: URL: {error}") from error
    if parts.netloc not in ("", "localhost"):
        raise RequestError(
            f"the file: URL names the host {parts.netloc[:_SHOWN_CHARS]!r} (permitted: "
            "file:///path)",
            hint="write three slashes: file:///path/to/image.png",
        )
    path = unquote(parts.path)
    if not path.startswith("/") or parts.query or parts.fragment:
        raise RequestError(
            f"{_shown(url)} names no absolute path (permitted: file:///path, with ? and # in it "
            "written %3F and %23)"
        )
    return path


def _read(descriptor: int, path: str, max_bytes: int) -> bytes:
    """Raises RequestError for what is no regular file, and for too large ones."""
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode):
        raise RequestError(f"{_shown(path)} is no regular file (permitted: an image file)")
    pieces: list[bytes] = []
    room = max_bytes + 1
    while room > 0 and (piece := os.read(descriptor, min(room, 1 << 20))):
        pieces.append(piece)
        room -= len(piece)
    if room <= 0:
        raise too_large(max(state.st_size, max_bytes + 1), max_bytes)
    return b"".join(pieces)


def too_large(num_bytes: int, max_bytes: int) -> RequestError:
    """The error for an image file of so many bytes."""
    return RequestError(
        f"the image file has {format_bytes(num_bytes)} or more, permitted are "
        f"{format_bytes(max_bytes)}",
        hint="send a smaller file, or start the server with a larger --max-body-bytes",
    )


def _outside(path: str, allowed_path: str) -> RequestError:
    return RequestError(
        f"the file {_shown(path)} does not lie below --allowed-local-media-path {allowed_path}",
        hint="put the image below that directory",
    )


def _shown(text: str) -> str:
    """A client's text for a message: quoted, with its middle left out."""
    return repr(text if len(text) <= 100 else f"{text[:60]}…{text[-30:]}")
