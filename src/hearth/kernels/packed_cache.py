"""A directory of packed weights: found by key, written whole or not at all, bounded in bytes.

Names: KEY.packed is complete, KEY.packing is being written, KEY.note is what its writer wanted to
be known of it, beside the bytes; it goes with the file. Locks (flock(2)) say who uses what:
a file is shared-locked while it is mapped, exclusively while it is written; a lock ends with its
process, however that ends.

    begin ─▶ KEY.packing, exclusive, space reserved ─ packed in place, through its mapping ─
    commit ─▶ checksums, fsync, shared, renamed to KEY.packed ─ still the same mapping ─▶ …
    find  ─▶ KEY.packed, shared, checked, mapped read-only

Weights are packed straight into the file's pages: there is no second copy, neither in memory nor
in time. Space is reserved before, because a full disk would end the process (SIGBUS) where a page
is written, while it is an ordinary error where it is reserved.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hearth.core.units import format_bytes
from hearth.kernels.packed_file import (
    PackedFileError,
    PackedHeader,
    check_file,
    damaged_tensors,
    encode_header,
    read_header,
    with_checksums,
)

COMPLETE, UNFINISHED, NOTE = ".packed", ".packing", ".note"
_MOST_NOTE_BYTES = 1 << 20


class CacheError(Exception):
    """The cache cannot serve this time; the message says why. Serving goes on without it."""


class CacheBusyError(CacheError):
    """Another process is writing the same weights at this moment."""


@dataclass(frozen=True, slots=True)
class Found:
    """Packed weights, mapped for reading. The mapping keeps the file's lock as long as it lives."""

    memory: mmap.mmap
    path: Path
    age_s: float  # since it was written
    note: bytes = b""  # as `Draft.commit` got it; empty where it is lost


class PackedCache:
    """One directory. Several processes may use it at once."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """`max_bytes`: all files together; the least recently used go first."""
        self.directory = directory
        self.max_bytes = max_bytes

    def find(
        self,
        wanted: PackedHeader,
        *,
        verify: bool = False,
        prepare: Callable[[mmap.mmap], None] | None = None,
    ) -> Found | None:
        """The file of this key, or None. `verify` reads all of it and compares checksums.

        `prepare` gets the mapping before anything of it is read; it may raise OSError. Raises
        CacheError when there is a file that is damaged (it is removed) or cannot be read.
        """
        path = self._path(wanted.key, COMPLETE)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise CacheError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            if not _lock(fd, fcntl.LOCK_SH):
                return None  # it is just being evicted
            memory = _map(fd, path, wanted)
            if prepare is not None:
                prepare(memory)
            return _found(fd, path, memory, verify=verify)
        except PackedFileError as error:
            with contextlib.suppress(OSError):
                path.unlink()
            raise CacheError(f"{path} is damaged: {error}; the weights are packed anew") from error
        except (OSError, ValueError) as error:
            raise CacheError(f"{path} cannot be used: {error}") from error
        finally:
            os.close(fd)  # the mapping has its own duplicate, which holds the lock

    def begin(self, wanted: PackedHeader) -> Draft:
        """Makes room and opens a file to pack into.

        Raises CacheError (no room within the budget or on the disk, not writable), CacheBusyError.
        """
        head_bytes = len(encode_header(wanted))
        total = head_bytes + wanted.num_bytes
        if total > self.max_bytes:
            raise CacheError(
                f"the packed weights take {format_bytes(total)}, the budget is "
                f"{format_bytes(self.max_bytes)}"
            )
        path = self._path(wanted.key, UNFINISHED)
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = _open_exclusively(path)
        except OSError as error:
            raise CacheError(f"{self.directory} cannot be written: {error.strerror}") from error
        try:
            self._evict(total)
            os.posix_fallocate(fd, 0, total)
            memory = mmap.mmap(fd, wanted.num_bytes, mmap.MAP_SHARED, offset=head_bytes)
        except (OSError, CacheError) as error:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(fd)
            if isinstance(error, CacheError):
                raise
            raise CacheError(_describe_full(self.directory, total, error)) from error
        return Draft(memory, wanted, fd, path, self._path(wanted.key, COMPLETE))

    def used_bytes(self) -> int:
        """Disk space that the files take now."""
        try:
            return sum(file.num_bytes for file in self._files())
        except OSError:  # no directory yet, or not ours to read
            return 0

    def _path(self, key: str, suffix: str) -> Path:
        return self.directory / f"{key}{suffix}"

    def _evict(self, needed_bytes: int) -> None:
        """Removes what nobody uses, oldest use first, until `needed_bytes` are within the budget.

        Unfinished files without a writer go in any case. Raises CacheError when what remains is
        in use.
        """
        files = sorted(self._files(), key=lambda f: f.used_ns)
        total = sum(file.num_bytes for file in files)
        for file in files:
            is_left_over = file.path.suffix == UNFINISHED
            if (is_left_over or total + needed_bytes > self.max_bytes) and _remove_unused(
                file.path
            ):
                total -= file.num_bytes
        if total + needed_bytes > self.max_bytes:
            raise CacheError(
                f"{format_bytes(total)} of the budget of {format_bytes(self.max_bytes)} are in "
                f"use by other servers, {format_bytes(needed_bytes)} are needed"
            )

    def _files(self) -> Iterator[_File]:
        """Our files, except those that this process is about to fill (they are empty)."""
        for path in self.directory.iterdir():
            if path.suffix in (COMPLETE, UNFINISHED):
                with contextlib.suppress(FileNotFoundError):
                    found = path.stat()
                    if stat.S_ISREG(found.st_mode):
                        yield _File(path, found.st_blocks * 512, found.st_atime_ns)


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    num_bytes: int
    used_ns: int


class Draft:
    """A file that is being packed into, through `memory`. Ends with `commit` or `discard`."""

    def __init__(
        self, memory: mmap.mmap, header: PackedHeader, fd: int, path: Path, final: Path
    ) -> None:
        self.memory = memory
        self._header = header
        self._fd = fd
        self._path = path
        self._final = final

    def commit(self, note: bytes = b"") -> Path:
        """Makes the file durable and known; takes as long as the disk. `memory` stays valid.

        `note` (up to a megabyte): what `find` will give beside the bytes.
        Call it once, when all is packed; the tensors must not change afterwards. Raises OSError
        when the disk refuses: then the pages in memory may not outlive memory pressure.
        """
        try:
            header = with_checksums(self._header, memoryview(self.memory))
            os.pwrite(self._fd, encode_header(header), 0)
            os.fsync(self._fd)
            with contextlib.suppress(OSError):  # a lost note is no reason to pack again
                _write_note(self._final.with_suffix(NOTE), note)
            fcntl.flock(self._fd, fcntl.LOCK_SH)  # before others see it under its final name
            self._path.rename(self._final)
        except OSError:
            self.discard()
            raise
        with contextlib.suppress(OSError):  # at worst the name is lost when the power fails now
            _sync_directory(self._final.parent)
        os.close(self._fd)  # the mapping's duplicate keeps the lock
        return self._final

    def discard(self) -> None:
        """Forgets the file; `memory` stays valid as long as it is referred to."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._fd)


def _map(fd: int, path: Path, wanted: PackedHeader) -> mmap.mmap:
    """The data of a file that holds what is wanted. Raises CacheError, PackedFileError, OSError."""
    owner = os.fstat(fd).st_uid
    if owner not in (0, os.geteuid()):
        raise CacheError(f"{path} belongs to user {owner}, who could change it at any time")
    header = check_file(fd, wanted)
    offset = len(encode_header(header))
    return mmap.mmap(fd, header.num_bytes, mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=offset)


def _found(fd: int, path: Path, memory: mmap.mmap, *, verify: bool) -> Found:
    """Notes that the file is used. Raises PackedFileError, OSError."""
    if verify and (damaged := list(damaged_tensors(read_header(fd), memoryview(memory)))):
        raise PackedFileError(f"{len(damaged)} tensors have changed: {damaged[0]} …")
    # The time of use is the access time: that of modification stays the time of writing. Set
    # by hand, since most file systems keep it only once a day or not at all.
    written = os.fstat(fd).st_mtime_ns
    with contextlib.suppress(OSError):  # a directory for reading only
        os.utime(fd, ns=(time.time_ns(), written))
    return Found(memory, path, max(0.0, time.time() - written / 1e9), _read_note(path))


def _write_note(path: Path, note: bytes) -> None:
    """Whole or not at all; what another file of this name had goes first. Raises OSError."""
    path.unlink(missing_ok=True)
    if not note:
        return
    draft = path.with_suffix(NOTE + ".part")
    try:
        draft.write_bytes(note)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _read_note(packed: Path) -> bytes:
    try:
        with packed.with_suffix(NOTE).open("rb") as file:
            return file.read(_MOST_NOTE_BYTES)
    except OSError:
        return b""


def _open_exclusively(path: Path) -> int:
    """An empty file under this name, locked. Raises CacheBusyError, OSError."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _lock(fd, fcntl.LOCK_EX):
            os.close(fd)
            raise CacheBusyError("another server is packing the same weights at this moment")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(status := os.fstat(fd), path.stat()):
                if status.st_size == 0:
                    return fd
                # What a writer that died has left. Never truncated: a writer's lock may be free for
                # a moment while it changes its kind (flock(2)), and its pages are served from.
                path.unlink()
        os.close(fd)  # it was renamed or removed


def _remove_unused(path: Path) -> bool:
    """Removes a file unless it is locked; whether it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not _lock(fd, fcntl.LOCK_EX):
            return False
        path.unlink()
        path.with_suffix(NOTE).unlink(missing_ok=True)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _lock(fd: int, kind: int) -> bool:
    """Takes a lock if that is possible at once."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _describe_full(directory: Path, num_bytes: int, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{directory} has no room for {format_bytes(num_bytes)}: {error.strerror}"
    return f"{directory} cannot be written: {error.strerror}"
