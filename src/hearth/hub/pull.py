"""`pull`: from a name to a directory that holds all of the model, verified.

    lock ─▶ list (first source that answers) ─▶ select ─▶ already here? ─▶ room? ─▶
    fetch in parallel, smallest first ─▶ place each ─▶ manifest ─▶ ref ─▶ unlock

What another commit of the model holds already is linked, not fetched: most commits change a README.

A kill or a power cut between any two of these leaves a model without a manifest, that is: none;
the next pull goes on with what is there. Small files go first, so that a gated model is refused
before its first gigabyte.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from hearth.core.errors import (
    CapacityError,
    HearthError,
    ModelNotFoundError,
    RemoteError,
    UnreachableError,
)
from hearth.core.units import MIB, format_bytes
from hearth.hub.digests import Digest, file_digest
from hearth.hub.download import (
    Fetcher,
    StoppedError,
    disk_error,
    fetch_file,
    held_bytes,
    part_path,
    place,
)
from hearth.hub.listing import Listing, RemoteFile
from hearth.hub.manifest import Manifest, ManifestFile, read_manifest, write_manifest
from hearth.hub.names import COMMIT, ModelName
from hearth.hub.observer import Observer
from hearth.hub.selection import select
from hearth.hub.sources import Source
from hearth.hub.store import Store, utc_now
from hearth.hub.transport import Retry, Transport

# Directories, the manifest, the file system's own: not worth a second of anybody's time.
_MARGIN_BYTES = 16 * MIB


@dataclass(frozen=True, slots=True)
class Order:
    """What to pull, and how."""

    name: ModelName
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    num_workers: int = 4
    retry: Retry = field(default_factory=Retry)

    @property
    def has_patterns(self) -> bool:
        """Whether the user chose the files."""
        return bool(self.include or self.exclude)


@dataclass(frozen=True, slots=True)
class Pulled:
    """A whole model. `num_fetched_bytes`: that this pull downloaded."""

    path: Path
    manifest: Manifest
    num_fetched_bytes: int = 0
    unverified: tuple[str, ...] = ()  # files for which the source gives no checksum


def pull(store: Store, order: Order, sources: Sequence[Source], observer: Observer) -> Pulled:
    """Downloads what is missing of a model.

    Raises UnreachableError where no source answers, what a source refuses, CapacityError,
    ChecksumError, ConfigError, ModelError, HearthError where the store cannot be written.
    """

    def waiting() -> None:
        observer.note(f"another process is pulling {order.name.repo}: waiting for it")

    with store.locked(order.name, waiting):
        pinned = order.name.revision or ""
        if COMMIT.fullmatch(pinned) and not order.has_patterns:
            found = here(store, order.name)
            if found is not None and not found.manifest.is_chosen:
                return found  # a commit never means anything else: nobody has to be asked
        transport = Transport(order.retry, observer.note)
        try:
            return _from_first(store, order, sources, transport, observer)
        finally:
            transport.close()


def here(store: Store, name: ModelName) -> Pulled | None:
    """What the store has of a model, if it is whole."""
    found = store.find(name)
    if found is None or found.manifest is None:
        return None
    return Pulled(found.path, found.manifest)


def offline(store: Store, name: ModelName) -> Pulled:
    """As `pull`, without asking anybody. Raises ModelNotFoundError."""
    found = here(store, name)
    if found is None:
        raise ModelNotFoundError(
            f"{name} is not in {store.root}, or not all of it, and --offline asks nobody",
            hint=f"hearth pull {name}, without --offline and HF_HUB_OFFLINE",
        )
    return found


def _from_first(
    store: Store,
    order: Order,
    sources: Sequence[Source],
    transport: Transport,
    observer: Observer,
) -> Pulled:
    tried: list[UnreachableError] = []
    for index, source in enumerate(sources):
        try:
            listing = source.list_files(order.name, transport)
            return _Pull(store, order, source, listing, observer).run(transport)
        except UnreachableError as error:
            tried.append(error)
            if index + 1 < len(sources):
                following = sources[index + 1].label
                observer.note(f"{source.label} does not answer ({error.message}): {following} next")
        except (RemoteError, ModelNotFoundError) as error:
            if tried:  # say how it came to be asked
                error.message = f"{error.message}; before it: {_said(tried)}"
            raise
    raise UnreachableError(f"no source answers: {_said(tried)}", hint=_hint(store, order.name))


def _said(errors: Sequence[HearthError]) -> str:
    return "; ".join(error.message for error in errors)


def _hint(store: Store, name: ModelName) -> str:
    advice = "check the network and the proxy settings, or name another --source"
    try:
        found = here(store, name)
    except HearthError:
        return advice
    return f"{advice}; --offline takes what is here" if found else advice


class _Pull:
    """One attempt with one source; the lock is held."""

    def __init__(
        self, store: Store, order: Order, source: Source, listing: Listing, observer: Observer
    ) -> None:
        self._store = store
        self._order = order
        self._source = source
        self._listing = listing
        self._observer = observer
        self._directory = store.commit_dir(order.name, listing.commit)
        self._parts = store.parts_dir(order.name)
        self._twins = self._find_twins()

    def run(self, transport: Transport) -> Pulled:
        wanted = select(self._listing, self._order.include, self._order.exclude)
        self._store.check_names(file.path for file in wanted)
        known = self._known()
        missing = [file for file in wanted if file.path not in known]
        self._check_paths(missing)
        self._check_room(missing)
        held = sum(map(self._held, missing))
        total = sum(file.num_bytes for file in missing)
        if missing:
            title = f"{self._listing.repo} from {self._listing.source}"
            self._observer.begin(title, total, held)
        fetched = self._fetch(missing, transport)
        files = {**known, **fetched}
        try:
            manifest = self._finish(files, is_new=bool(missing))
        except OSError as error:
            raise disk_error(error, str(self._directory), "what was downloaded is kept") from error
        unverified = tuple(f.path for f in manifest.files if not f.source_digest)
        return Pulled(self._directory, manifest, total - held, unverified)

    def _known(self) -> dict[str, ManifestFile]:
        """What an earlier pull has placed and written down, as far as it is still there."""
        manifest = read_manifest(self._directory)
        found = {}
        for file in () if manifest is None else manifest.files:
            path = self._directory / file.path
            if path.is_file() and path.stat().st_size == file.num_bytes:
                found[file.path] = file
        return found

    def _check_paths(self, files: Sequence[RemoteFile]) -> None:
        """No directory on the way to a file is a link that leads elsewhere."""
        for file in files:
            for parent in (self._directory / file.path).parents:
                if parent == self._store.root:
                    break
                if parent.is_symlink():
                    raise HearthError(
                        f"{parent} is a link; models are written into real directories only",
                        hint="remove the link",
                    )

    def _check_room(self, files: Sequence[RemoteFile]) -> None:
        """Raises CapacityError with the arithmetic."""
        total = sum(file.num_bytes for file in files)
        held = sum(map(self._held, files))
        needed = total - held + (_MARGIN_BYTES if files else 0)
        free = shutil.disk_usage(_existing(self._directory)).free
        if needed > free:
            raise CapacityError(
                f"{self._listing.repo} needs {format_bytes(needed)} more ({len(files)} files of "
                f"{format_bytes(total)}, {format_bytes(held)} of them are here, "
                f"{format_bytes(_MARGIN_BYTES)} to spare), {self._store.root} has "
                f"{format_bytes(free)} free: {format_bytes(needed - free)} short",
                hint="free space (hearth models), or name a larger disk with HEARTH_MODELS_DIR",
            )

    def _fetch(self, files: Sequence[RemoteFile], transport: Transport) -> dict[str, ManifestFile]:
        """All files, several at a time; the first failure stops the others and is raised."""
        stopped = threading.Event()
        fetcher = Fetcher(transport, self._listing, self._source.refusal, self._observer, stopped)
        workers = max(1, min(self._order.num_workers, len(files)))
        by_size = sorted(files, key=lambda file: file.num_bytes)
        with ThreadPoolExecutor(workers, thread_name_prefix="hearth-pull") as pool:
            futures = {pool.submit(self._fetch_one, fetcher, file): file for file in by_size}
            done, pending = wait(futures, return_when=FIRST_EXCEPTION)
            if pending:
                stopped.set()
                for future in pending:
                    future.cancel()
                wait(pending)
        errors = [f.exception() for f in futures if not f.cancelled() and f.exception()]
        for error in sorted(errors, key=lambda e: isinstance(e, StoppedError)):
            assert error is not None
            raise error
        return {futures[future].path: future.result() for future in done}

    def _fetch_one(self, fetcher: Fetcher, file: RemoteFile) -> ManifestFile:
        if fetcher.stopped.is_set():
            raise StoppedError
        part = self._part(file)
        try:
            sha256 = self._placed(file) or self._linked(file, part)
            if sha256 is None:
                sha256 = fetch_file(fetcher, file, part)
                place(part, self._directory / file.path)
        except OSError as error:
            raise disk_error(error, str(self._directory), f"{part} is kept") from error
        given = "" if file.digest is None else str(file.digest)
        return ManifestFile(file.path, file.num_bytes, sha256.value, given)

    def _placed(self, file: RemoteFile) -> Digest | None:
        """The sha256 of a file that an earlier pull placed without living to write it down."""
        if file.digest is None or not self._is_there(file):
            return None
        path = self._directory / file.path
        if file_digest(path, file.digest.kind) == file.digest:
            return file_digest(path, "sha256")
        self._observer.advance(-file.num_bytes)
        return None

    def _linked(self, file: RemoteFile, part: Path) -> Digest | None:
        """The sha256 of a file that another commit holds, now linked into its place."""
        twin = self._twins.get(str(file.digest))
        if twin is None or file.digest is None or self._is_there(file):
            return None
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.unlink(missing_ok=True)
            part.hardlink_to(twin)
            if file_digest(part, file.digest.kind) == file.digest:
                sha256 = file_digest(part, "sha256")
                place(part, self._directory / file.path)
                return sha256
        except OSError:  # a file system without links
            pass
        # Never written to: it may be the other commit's file.
        part.unlink(missing_ok=True)
        self._observer.advance(-file.num_bytes)
        return None

    def _find_twins(self) -> dict[str, Path]:
        """Files of the other commits, by every checksum that is known of them."""
        found: dict[str, Path] = {}
        for model in self._store.revisions(self._order.name):
            if model.manifest is not None and model.path != self._directory:
                for file in model.manifest.files:
                    path = model.path / file.path
                    if path.is_file() and path.stat().st_size == file.num_bytes:
                        found[f"sha256 {file.sha256}"] = path
                        found[file.source_digest or f"sha256 {file.sha256}"] = path
        return found

    def _is_there(self, file: RemoteFile) -> bool:
        """Whether a file of this name and size is in its place."""
        path = self._directory / file.path
        if file.digest is None or path.is_symlink() or not path.is_file():
            return False
        return path.stat().st_size == file.num_bytes

    def _held(self, file: RemoteFile) -> int:
        """How much of it is on the disk, in its place or as a part."""
        if self._is_there(file) or str(file.digest) in self._twins:
            return file.num_bytes
        return held_bytes(self._part(file), file)

    def _finish(self, files: dict[str, ManifestFile], *, is_new: bool) -> Manifest:
        old = read_manifest(self._directory)
        manifest = old
        # Chosen files that were there before do not make a whole model of those chosen now.
        is_chosen = self._order.has_patterns and (old is None or old.is_chosen)
        if is_new or manifest is None or manifest.is_chosen != is_chosen:
            now = utc_now()
            manifest = Manifest(
                model=self._listing.repo,
                revision=self._listing.revision,
                commit=self._listing.commit,
                source=self._listing.source,
                pulled_at=now,
                verified_at=now,
                files=tuple(files[path] for path in sorted(files)),
                is_chosen=is_chosen,
            )
            write_manifest(self._directory, manifest)
        self._store.set_ref(self._order.name, self._listing.revision, self._listing.commit)
        self._drop_parts(manifest)
        return manifest

    def _drop_parts(self, manifest: Manifest) -> None:
        """Part files of what is whole now; those of other revisions stay."""
        if not self._parts.is_dir():
            return
        done = {file.source_digest.replace(" ", "-") for file in manifest.files}
        for path in self._parts.iterdir():
            if path.name.rpartition("-")[0] in done:
                path.unlink()
        if next(self._parts.iterdir(), None) is None:
            self._parts.rmdir()

    def _part(self, file: RemoteFile) -> Path:
        return part_path(self._parts, self._listing.commit, file)


def _existing(path: Path) -> Path:
    """The nearest directory above that exists."""
    return next(p for p in (path, *path.parents) if p.exists())
