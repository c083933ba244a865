"""Which cores other servers of this user have taken: a file for each server, locked while it lives.

A server writes the logical CPUs of its threads into a file of its own and keeps it locked
(flock(2)): the lock ends with the process, however that ends, and the next server removes the file.
Never decides where a thread runs and never refuses a start: what cannot be seen is said in `why`.
Servers of other users, and of containers with a file system of their own, are not seen.

  lock              held while a server looks and chooses, so that two do not choose alike
  <pid>-<…>.cpus    a list like 0-3; locked by the server whose threads are there
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import time
import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hearth.host.cpu import format_cpus
from hearth.host.files import cpu_list

_LEASE = re.compile(r"(\d{1,10})-\w+\.cpus", re.ASCII)
_MOST_TEXT = 1 << 16
PATIENCE_S = 1.0  # with another server that is choosing
_PAUSE_S = 0.005


@dataclass(frozen=True, slots=True)
class OtherServers:
    """`pids`: by logical CPU, the processes that have taken it. `why`: others cannot be seen."""

    pids: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    why: str = ""


class CoreLease:
    """Cores that this process has taken, until it ends, `close` is called or the object is gone."""

    def __init__(self, descriptor: int, path: Path) -> None:
        """Takes the locked file over."""
        _OWN.add(path)
        self._end = weakref.finalize(self, _release, descriptor, path, os.getpid())

    def close(self) -> None:
        """Gives the cores back; a second call does nothing."""
        self._end()


_OWN: set[Path] = set()  # leases of this process, which are not those of others


def _release(descriptor: int, path: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a child that was forked
        _OWN.discard(path)
        with contextlib.suppress(OSError):
            path.unlink()
    os.close(descriptor)


class CoreLeases:
    """The leases of a directory; see `open_leases`."""

    def __init__(self, directory: Path | None, why: str = "") -> None:
        """`directory` None: there is none, and `why`."""
        self._directory = directory
        self._why = why

    def others(self) -> OtherServers:
        """Who has taken which CPUs. Removes what dead servers have left."""
        pids: dict[int, tuple[int, ...]] = {}
        if self._directory is None:
            return OtherServers(pids, self._why)
        try:
            paths = sorted(self._directory.iterdir())
        except OSError as error:
            return OtherServers(pids, f"{self._directory}: {error.strerror}")
        for path in paths:
            match = _LEASE.fullmatch(path.name)
            if match is None or path in _OWN:
                continue
            for cpu in self._cpus_of(path):
                pids[cpu] = (*pids.get(cpu, ()), int(match[1]))
        return OtherServers(pids, self._why)

    def _cpus_of(self, path: Path) -> Collection[int]:
        """Those of a living server's file."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return ()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if not self._why:  # else another server may be about to write it
                path.unlink()
        except BlockingIOError:
            text = os.read(descriptor, _MOST_TEXT).decode("ascii", "replace")
            return cpu_list(text) or ()
        except OSError:
            return ()
        finally:
            os.close(descriptor)
        return ()

    def claim(self, cpus: Collection[int]) -> CoreLease | None:
        """Takes CPUs; None: nothing was to be taken, or it cannot be written down."""
        if self._directory is None or not cpus:
            return None
        unique = f"{time.monotonic_ns():x}"
        new = self._directory / f"new-{os.getpid()}-{unique}"
        path = self._directory / f"{os.getpid()}-{unique}.cpus"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(new, flags, 0o600)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, format_cpus(cpus).encode())
            new.rename(path)
        except OSError:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                new.unlink()
            return None
        return CoreLease(descriptor, path)


@contextmanager
def open_leases(
    environment: Mapping[str, str] | None = None,
    fallback: Path = Path("/tmp"),
    patience_s: float = PATIENCE_S,
) -> Iterator[CoreLeases]:
    """The leases of this user, with other servers kept from choosing meanwhile. Raises nothing."""
    found = _find_directory(os.environ if environment is None else environment, fallback)
    if found.directory is None:
        yield CoreLeases(None, found.why)
        return
    with _locked(found.directory / "lock", patience_s) as why:
        yield CoreLeases(found.directory, why)


@dataclass(frozen=True, slots=True)
class _Found:
    directory: Path | None
    why: str = ""


def _find_directory(environment: Mapping[str, str], fallback: Path) -> _Found:
    """The first that is this user's alone: below the runtime directory, else in /tmp."""
    uid = os.getuid()
    named = environment.get("XDG_RUNTIME_DIR", "")
    bases = [Path(named)] if named.startswith("/") else [Path(f"/run/user/{uid}")]
    reasons: list[str] = []
    for path in (*(base / "hearth-cores" for base in bases), fallback / f"hearth-{uid}"):
        is_fallback = path.parent == fallback
        if not is_fallback and not _is_own(path.parent, uid):
            continue
        try:
            with contextlib.suppress(FileExistsError):
                path.mkdir(0o700)
        except OSError as error:
            reasons.append(f"{path}: {error.strerror}")
            continue
        if _is_own(path, uid):
            return _Found(path)
        reasons.append(f"{path} is not a directory of this user alone")
    return _Found(None, "; ".join(reasons))


def _is_own(path: Path, uid: int) -> bool:
    """A directory, not a link to one, that belongs to the user and that nobody else may enter."""
    try:
        status = path.lstat()
    except OSError:
        return False
    is_private = not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == uid and is_private


@contextmanager
def _locked(path: Path, patience_s: float) -> Iterator[str]:
    """Holds the lock, if it can be had in time; yields why not, or ""."""
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        yield f"{path}: {error.strerror}"
        return
    try:
        yield _wait_for(descriptor, path, patience_s)
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int, path: Path, patience_s: float) -> str:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return f"{path}: another server holds it"
            time.sleep(_PAUSE_S)
        except OSError as error:
            return f"{path}: {error.strerror}"
        else:
            return ""
