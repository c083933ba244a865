"""One file from a hub onto the disk: resumed at any byte, verified, then given its name.

    part file     holds the first bytes of the file, and nothing else, at every moment
    complete      as long as listed: read back and its checksum compared
    placed        fsync, renamed to its own name in the model's directory, directory synced

A part file is named by the checksum of what it will be, so that it fits whichever commit and
source the next attempt asks. One process at a time writes it: see store.locked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from hearth.core.errors import CapacityError, ChecksumError, HearthError, RemoteError
from hearth.core.units import format_bytes, format_count
from hearth.hub.digests import Digest, file_digest
from hearth.hub.listing import Listing, RemoteFile
from hearth.hub.observer import Observer
from hearth.hub.transport import (
    MAX_REFUSAL_BYTES,
    Attempts,
    RetryableError,
    Transport,
    led_away_error,
    read_whole,
    was_led_away,
)

if TYPE_CHECKING:
    import httpx

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Refusal(Protocol):
    """What a source makes of an error status (Source.refusal)."""

    def __call__(self, response: httpx.Response, repo: str) -> HearthError: ...


@dataclass(frozen=True, slots=True)
class Fetcher:
    """What all files of a pull share. `stopped`: set when one of them failed, for the others."""

    transport: Transport
    listing: Listing
    refusal: Refusal
    observer: Observer
    stopped: threading.Event


class StoppedError(Exception):
    """Another file of this pull failed; this one stopped where it was."""


def part_path(parts: Path, commit: str, file: RemoteFile) -> Path:
    """Where a file is written before it is whole."""
    # Two files of a model may have the same contents, and be fetched at the same time.
    if file.digest is not None:
        place_of = blake2b(file.path.encode(), digest_size=4).hexdigest()
        return parts / f"{file.digest.kind}-{file.digest.value}-{place_of}.part"
    key = blake2b(f"{commit}\0{file.path}\0{file.num_bytes}".encode(), digest_size=20)
    return parts / f"unknown-{key.hexdigest()}.part"


def held_bytes(part: Path, file: RemoteFile) -> int:
    """How much of the file a part file holds."""
    try:
        status = part.lstat()
    except OSError:
        return 0
    if status.st_nlink > 1:  # a kill came between link and place: it is another commit's file, too
        return 0
    num_bytes = status.st_size
    return num_bytes if num_bytes <= file.num_bytes and file.digest is not None else 0


def fetch_file(fetcher: Fetcher, file: RemoteFile, part: Path) -> Digest:
    """Fills the part file; its sha256 when it is the file that the source lists.

    Raises ChecksumError (the part file is gone then), CapacityError for a full disk, what the
    source refuses, UnreachableError; StoppedError. In all other cases the part file stays.
    """
    inherited = held_bytes(part, file)
    _fill(fetcher, file, part)
    found = _verified(file, part)
    if isinstance(found, ChecksumError) and inherited:
        # The old bytes may be to blame: a power cut leaves zeros in what was not synced.
        fetcher.observer.note(f"{file.path}: {found.message}; once more from the beginning")
        fetcher.observer.advance(-file.num_bytes)
        _fill(fetcher, file, part)
        found = _verified(file, part)
    if isinstance(found, ChecksumError):
        fetcher.observer.advance(-file.num_bytes)
        raise found
    return found


def place(part: Path, target: Path) -> None:
    """Gives a verified file its name, durably. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)
    sync_directory(target.parent)


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def disk_error(error: OSError, what: str, kept: str) -> HearthError:
    """An error of the file system, as what it means for a pull."""
    if error.errno in _FULL:
        return CapacityError(
            f"{what} cannot be written: {error.strerror}",
            hint=f"free space, or name a larger disk with HEARTH_MODELS_DIR; {kept}",
        )
    return HearthError(f"{what} cannot be written: {error.strerror}", hint=f"see the disk; {kept}")


def _fill(fetcher: Fetcher, file: RemoteFile, part: Path) -> None:
    """Until the part file is as long as the file."""
    start = held_bytes(part, file)
    reached = start
    retry, note = fetcher.transport.retry, fetcher.observer.note
    attempts = Attempts(retry, file.path, note, fetcher.stopped.wait)
    try:
        with _open(part, start) as out:
            while True:
                try:
                    _append(fetcher, file, out)
                    os.fsync(out.fileno())
                    return
                except RetryableError as failure:
                    if out.tell() > reached:  # farther than ever, not just from the start again
                        reached = out.tell()
                        attempts.progressed()
                    attempts.failed(failure.error, failure.wait_s)
                if fetcher.stopped.is_set():
                    raise StoppedError
    except OSError as error:
        kept = f"{format_bytes(held_bytes(part, file))} of {file.path} are kept for the next pull"
        raise disk_error(error, str(part.parent), kept) from error


def _open(part: Path, num_bytes: int) -> IO[bytes]:
    """Unbuffered, at the end of what it holds; never through a link."""
    part.parent.mkdir(parents=True, exist_ok=True)
    if not num_bytes:
        part.unlink(missing_ok=True)  # never cut what may be linked from elsewhere
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    out = os.fdopen(os.open(part, flags, 0o644), "r+b", buffering=0)
    out.truncate(num_bytes)
    out.seek(num_bytes)
    return out


def _append(fetcher: Fetcher, file: RemoteFile, out: IO[bytes]) -> None:
    """One request for all that is missing. Raises RetryableError where it brings less."""
    offset = out.tell()
    if offset == file.num_bytes:
        return
    headers = dict(fetcher.listing.headers)
    if offset:
        headers["Range"] = f"bytes={offset}-"
    with fetcher.transport.stream(file.url, headers) as response:
        check_status(fetcher, file, response)
        if response.status_code == 206:
            check_range(fetcher, file, response, offset)
        elif offset:  # the server ignores ranges and sends all of it
            fetcher.observer.advance(-offset)
            out.seek(0)
            out.truncate()
        _copy(fetcher, file, response, out)


def _copy(fetcher: Fetcher, file: RemoteFile, response: httpx.Response, out: IO[bytes]) -> None:
    for chunk in response.iter_bytes():
        if fetcher.stopped.is_set():
            raise StoppedError
        if out.tell() + len(chunk) > file.num_bytes:
            fetcher.observer.advance(-out.tell())
            out.seek(0)
            out.truncate()
            raise _other_size(fetcher, file, "more")
        _write(out, chunk)
        fetcher.observer.advance(len(chunk))
    if out.tell() < file.num_bytes:
        raise RetryableError(
            RemoteError(
                f"{fetcher.listing.source} sent {format_count(out.tell())} of "
                f"{format_count(file.num_bytes)} bytes of {file.path}",
                hint="run the same command again: it goes on where this one stopped",
            ),
            None,
        )


def _write(out: IO[bytes], chunk: bytes) -> None:
    """All of it: an unbuffered write may take less, at the end of a disk."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[out.write(rest) :]


def check_status(fetcher: Fetcher, file: RemoteFile, response: httpx.Response) -> None:
    """Whether contents follow. Raises RemoteError, RetryableError, and what the source refuses."""
    if response.status_code == 416:  # the server's file is shorter than the source listed
        said = response.headers.get("Content-Range", "").rpartition("/")[2]
        raise _other_size(fetcher, file, said or "fewer")
    if not response.is_success:
        response = read_whole(response, MAX_REFUSAL_BYTES)
        if was_led_away(response):
            raise RetryableError(led_away_error(response), None)
        raise fetcher.refusal(response, fetcher.listing.repo)


def check_range(fetcher: Fetcher, file: RemoteFile, response: httpx.Response, offset: int) -> None:
    """The part that was sent is the part that was asked for, of a file of the listed size.

    Raises RemoteError, RetryableError.
    """
    said = response.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(said.strip())
    if match is None or int(match[1]) != offset:
        raise RetryableError(
            RemoteError(f"{fetcher.listing.source} sent {said or 'no'} range for {offset}-"), None
        )
    if match[3] not in ("*", str(file.num_bytes)):
        raise _other_size(fetcher, file, match[3])


def _other_size(fetcher: Fetcher, file: RemoteFile, found: str) -> RemoteError:
    return RemoteError(
        f"{file.path} has {format_count(file.num_bytes)} bytes in the list of "
        f"{fetcher.listing.source}, and {found} when it is fetched",
        hint="the source contradicts itself: try again later, or name another --source",
    )


def _verified(file: RemoteFile, part: Path) -> Digest | ChecksumError:
    """The sha256 of a file that is what the source lists; else the error, and the file is gone."""
    try:
        sha256 = file_digest(part, "sha256")
        wanted = file.digest
        if wanted is None or wanted == sha256:
            return sha256
        found = sha256 if wanted.kind == "sha256" else file_digest(part, wanted.kind)
        if wanted == found:
            return sha256
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
    except OSError as error:
        raise disk_error(error, str(part), "run the same command again") from error
    return ChecksumError(
        f"{file.path} has {found}, the source says {wanted.value}",
        hint="it was deleted: pull again, or from another --source if it happens twice",
    )
