"""Copies of models on a fast disk, for models that lie on a slow one.

    DIR/KEY/…            a whole copy, with .stage.json
    DIR/KEY.copying/…    one that is being made, its space already reserved
    DIR/.locks/KEY       flock(2): exclusive while it is copied or removed, shared while it is used
    DIR/.locks/.budget   held while bytes are counted, room is made, a copy gets its name; never
                         while copying

KEY names the model's contents: the commit of a pulled one, else the sizes and times of its files.
The least recently used copies go first, by the time of their lock files; one in use stays. A copy
is what its source was: contents are hashed as they are read, compared with the manifest where there
is one, and read back from the copy and hashed again before it gets its name. The quality report of
a quantized checkpoint is no part of its contents: it is measured later, and measured again; a copy
gets the source's whenever it is asked for.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hearth.core.errors import CapacityError, ChecksumError, HearthError, ModelNotFoundError
from hearth.core.quality import REPORT_FILE
from hearth.core.units import format_bytes
from hearth.hub.digests import file_digest
from hearth.hub.download import disk_error, sync_directory
from hearth.hub.gguf_files import SUFFIX
from hearth.hub.listing import MANIFEST, STAGED, is_inside
from hearth.hub.manifest import read_manifest
from hearth.hub.observer import Observer
from hearth.hub.selection import is_needed, needed_weights

_COPYING = ".copying"
_LOCKS, _BUDGET = ".locks", ".budget"
_CHUNK = 4 << 20
_POLL_S = 0.05
# Of the disk's space that is free or staged already, where no budget is given.
_DISK_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    num_bytes: int
    mtime_ns: int
    sha256: str  # of the manifest; empty: unknown


class Staged:
    """A copy in use; it stays until `release`, or until the process ends."""

    def __init__(self, path: Path, fd: int, *, is_new: bool) -> None:
        self.path = path
        self.is_new = is_new
        self._fd = fd

    def release(self) -> None:
        """From now on the copy may be removed for another one. Once only."""
        os.close(self._fd)


def stage(source: Path, directory: Path, max_bytes: int | None, observer: Observer) -> Staged:
    """The copy of a model directory; made where there is none yet.

    `max_bytes`: of all copies; None: four fifths of what is free or staged. Raises
    ModelNotFoundError, CapacityError (budget, disk), ChecksumError, HearthError.
    """
    directory = directory.absolute()
    files = _files_of(source)
    key = _key(source, files)
    cache = _Cache(directory)
    is_new = False
    try:
        fd = cache.open_lock(key)
        try:
            while True:
                _lock_shared(fd, observer)
                if cache.is_whole(key, files):
                    os.utime(fd)
                    _bring_report(source, directory / key)
                    return Staged(directory / key, fd, is_new=is_new)
                # One kind of lock becomes the other by way of none (flock(2)): look again. Nobody
                # waits for the exclusive one: whoever made the copy meanwhile keeps it shared.
                if not _try_lock(fd):
                    time.sleep(_POLL_S)
                elif not cache.is_whole(key, files):
                    _make(cache, key, source, files, max_bytes, observer)
                    is_new = True
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise disk_error(error, str(directory), "--stage names another directory") from error


def _bring_report(source: Path, copy: Path) -> None:
    """The source's report into a copy that has none or another one; a copy's own stays without.

    A report that does not belong to its model's weights is not believed, so it may be replaced
    while somebody serves the copy. Raises OSError.
    """
    try:
        report = (source / REPORT_FILE).read_bytes()
    except FileNotFoundError:
        return
    target = copy / REPORT_FILE
    with contextlib.suppress(FileNotFoundError):
        if target.read_bytes() == report:
            return
    fd, draft = tempfile.mkstemp(prefix=f".{REPORT_FILE}-", dir=copy)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(report)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).chmod(0o644)
        Path(draft).replace(target)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def staged_bytes(directory: Path) -> int:
    """What the copies take, those that are being made included. Raises OSError."""
    if not directory.is_dir():
        return 0
    cache = _Cache(directory)
    with cache.counting():
        return sum(cache.sizes().values())


def _make(
    cache: _Cache,
    key: str,
    source: Path,
    files: tuple[_File, ...],
    max_bytes: int | None,
    observer: Observer,
) -> None:
    total = sum(file.num_bytes for file in files)
    draft = cache.directory / f"{key}{_COPYING}"
    with cache.counting():
        shutil.rmtree(draft, ignore_errors=True)  # of who died; the lock is ours
        shutil.rmtree(cache.directory / key, ignore_errors=True)  # damaged
        cache.make_room(total, max_bytes)
        _reserve(draft, files)
    try:
        observer.begin(f"staging {source.name} to {cache.directory}", total, 0)
        for file in files:
            _copy(source / file.path, draft / file.path, file, observer)
        _write_note(draft, source, files)
        sync_directory(draft)
        with cache.counting():  # who reads a directory meanwhile may see both names, or neither
            draft.rename(cache.directory / key)
        sync_directory(cache.directory)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


class _Cache:
    """The directory of copies."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Nobody else counts or removes meanwhile. Raises OSError."""
        fd = self.open_lock(_BUDGET)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def is_whole(self, key: str, files: tuple[_File, ...]) -> bool:
        """Whether a finished copy has all files with their sizes."""
        copy = self.directory / key
        try:
            return (copy / STAGED).is_file() and all(
                (copy / file.path).stat().st_size == file.num_bytes for file in files
            )
        except OSError:
            return False

    def sizes(self) -> dict[str, int]:
        """Bytes of each copy, by the name of its directory."""
        if not self.directory.is_dir():
            return {}
        return {
            path.name: _tree_bytes(path)
            for path in self.directory.iterdir()
            if not path.name.startswith(".") and path.is_dir() and self._is_ours(path)
        }

    def make_room(self, num_bytes: int, max_bytes: int | None) -> None:
        """Removes what nobody uses until `num_bytes` fit. Raises CapacityError."""
        sizes = self.sizes()
        used = sum(sizes.values())
        free = shutil.disk_usage(self.directory).free
        budget = int((free + used) * _DISK_SHARE) if max_bytes is None else max_bytes
        if num_bytes > budget:
            raise CapacityError(
                f"the model has {format_bytes(num_bytes)}, --stage-bytes is "
                f"{format_bytes(budget)}{' (of the free space)' if max_bytes is None else ''}",
                hint="raise --stage-bytes, or serve the model from where it lies",
            )
        for name in sorted(sizes, key=self._last_use):
            if used + num_bytes <= budget and num_bytes <= free:
                return
            if self._remove_unused(name):
                used -= sizes[name]
                free += sizes[name]
        if used + num_bytes > budget or num_bytes > free:
            raise CapacityError(
                f"{format_bytes(num_bytes)} are needed in {self.directory}: copies in use take "
                f"{format_bytes(used)} of {format_bytes(budget)}, {format_bytes(free)} are free",
                hint="end a server that uses one, raise --stage-bytes, or free space",
            )

    def _is_ours(self, path: Path) -> bool:
        """Nothing is counted or removed that staging has not made."""
        return (self.directory / _LOCKS / path.name.removesuffix(_COPYING)).is_file()

    def _last_use(self, name: str) -> float:
        return (self.directory / _LOCKS / name.removesuffix(_COPYING)).stat().st_mtime

    def _remove_unused(self, name: str) -> bool:
        fd = self.open_lock(name.removesuffix(_COPYING))
        try:
            if not _try_lock(fd):
                return False
            (self.directory / name / STAGED).unlink(missing_ok=True)  # first: it is not whole now
            shutil.rmtree(self.directory / name)
        finally:
            os.close(fd)
        return True

    def open_lock(self, key: str) -> int:
        """The lock file of a copy, opened. Raises OSError."""
        path = self.directory / _LOCKS / key
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _tree_bytes(path: Path) -> int:
    """Of the files below; of who gives up meanwhile, what is still there."""
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(directory) / name).lstat().st_size
    return total


def _lock_shared(fd: int, observer: Observer) -> None:
    if not _try_lock(fd, fcntl.LOCK_SH):
        observer.note("another process is making this copy: waiting for it")
        fcntl.flock(fd, fcntl.LOCK_SH)


def _try_lock(fd: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _files_of(source: Path) -> tuple[_File, ...]:
    """What serving reads of a directory; of a pulled one, what its manifest names."""
    manifest = read_manifest(source)
    is_pulled_gguf = manifest is not None and manifest.gguf
    if not is_pulled_gguf and not (source / "config.json").is_file():
        raise ModelNotFoundError(f"{source} holds no config.json", hint="name a model directory")
    if manifest is not None:
        sums = {file.path: file.sha256 for file in manifest.files}
    else:
        paths = [p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()]
        paths = [path for path in paths if is_inside(path)]  # not the note of another copy
        weights = set(needed_weights(paths) or _gguf_files(paths))
        sums = {path: "" for path in sorted(paths) if path in weights or is_needed(path)}
    sums.pop(REPORT_FILE, None)
    try:
        status = {path: (source / path).stat() for path in sums}
    except OSError as error:
        raise ModelNotFoundError(
            f"{error.filename}: {error.strerror}", hint="the model is not whole: pull it again"
        ) from error
    return tuple(_File(p, s.st_size, s.st_mtime_ns, sums[p]) for p, s in status.items())


def _gguf_files(paths: list[str]) -> list[str]:
    """In a view of GGUF files (models/gguf/view) all of them belong to one model."""
    return [path for path in paths if path.endswith(SUFFIX) and "/" not in path]


def _key(source: Path, files: tuple[_File, ...]) -> str:
    """A directory's name for these contents, with something to recognize in it."""
    manifest = read_manifest(source)
    if manifest is not None:
        name, facts = manifest.model, [(f.path, f.num_bytes, f.sha256) for f in files]
    else:
        name = source.resolve().name
        facts = [(f.path, f.num_bytes, str(f.mtime_ns)) for f in files]
        facts.append((str(source.resolve()), 0, ""))
    digest = hashlib.sha256(json.dumps(sorted(facts)).encode()).hexdigest()[:16]
    readable = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:80]
    return f"{readable.strip('-') or 'model'}-{digest}"


def _reserve(draft: Path, files: tuple[_File, ...]) -> None:
    """All space at once: a full disk shows now, and others count it. Raises OSError."""
    try:
        for file in files:
            path = draft / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                if file.num_bytes:
                    os.posix_fallocate(fd, 0, file.num_bytes)
            finally:
                os.close(fd)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _copy(source: Path, target: Path, file: _File, observer: Observer) -> None:
    """One file, compared on both sides. Raises ChecksumError, OSError."""
    seen = hashlib.sha256()
    with source.open("rb", buffering=0) as reader, target.open("r+b", buffering=0) as writer:
        os.posix_fadvise(reader.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        num_copied = 0
        while chunk := reader.read(_CHUNK):
            seen.update(chunk)
            _write_all(writer.write, chunk)
            num_copied += len(chunk)
            observer.advance(len(chunk))
        os.fsync(writer.fileno())
        mtime_ns = os.fstat(reader.fileno()).st_mtime_ns
    sha256 = seen.hexdigest()
    if num_copied != file.num_bytes or mtime_ns != file.mtime_ns:
        raise HearthError(f"{source} changed while it was copied", hint="stage it again")
    if file.sha256 not in ("", sha256):
        raise ChecksumError(
            f"{source} has sha256 {sha256}, pulled was {file.sha256}",
            hint="the slow disk's copy is damaged: remove the model and pull it again",
        )
    if (copied := file_digest(target, "sha256").value) != sha256:
        raise ChecksumError(f"{target} has sha256 {copied}, its source {sha256}", hint="see dmesg")


def _write_all(write: Callable[[memoryview], int | None], chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[write(rest) or 0 :]


def _write_note(draft: Path, source: Path, files: tuple[_File, ...]) -> None:
    """Last of all: a copy with it is whole. The manifest comes along, to verify the copy by."""
    if (source / MANIFEST).is_file():
        shutil.copyfile(source / MANIFEST, draft / MANIFEST)
    note = {"source": str(source), "num_bytes": sum(file.num_bytes for file in files)}
    with (draft / STAGED).open("w", encoding="utf-8") as file:
        json.dump(note, file)
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(draft / MANIFEST, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
