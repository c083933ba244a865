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
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

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
from hearth.hub.pinned import find_pinned
from hearth.hub.selection import select
from hearth.hub.sources import Source
from hearth.hub.store import Store, ref_name, utc_now
from hearth.hub.transport import Retry, Transport

# Directories, the manifest, the file system's own: not worth a second of anybody's time.
MARGIN_BYTES = 16 * MIB


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


def pull(
    store: Store,
    order: Order,
    sources: Sequence[Source],
    observer: Observer,
    make: MakeAttempt | None = None,
) -> Pulled:
    """Downloads what is missing of a model; `make` may do it in another way (hub/converting).

    Raises UnreachableError where no source answers, what a source refuses, CapacityError,
    ChecksumError, ConfigError, ModelError, HearthError where the store cannot be written.
    """

    def waiting() -> None:
        observer.note(f"another process is pulling {order.name.repo}: waiting for it")

    with store.locked(order.name, waiting):
        pinned = order.name.revision or ""
        if COMMIT.fullmatch(pinned) and not order.has_patterns and make is None:
            found = find_pinned(store, order.name)
            if found is not None and found.manifest is not None and not found.manifest.is_chosen:
                return Pulled(
                    found.path, found.manifest
                )  # a commit never means anything else: nobody has to be asked
        transport = Transport(order.retry, observer.note)
        try:
            return _from_first(store, order, sources, transport, observer, make or Attempt)
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
    make: MakeAttempt,
) -> Pulled:
    tried: list[UnreachableError] = []
    for index, source in enumerate(sources):
        try:
            listing = source.list_files(order.name, transport)
            return make(store, order, source, listing, observer).run(transport)
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


class Attempt:
    """One attempt with one source; the lock is held. `suffix`: of the directory's name.

    Making one raises ConfigError, ModelError, ModelNotFoundError: see `select`.
    """

    suffix = ""

    def __init__(
        self, store: Store, order: Order, source: Source, listing: Listing, observer: Observer
    ) -> None:
        self.store = store
        self.order = order
        self.source = source
        self.listing = listing
        self.observer = observer
        self.selection = select(listing, order.include, order.exclude, order.name.tag)
        if self.selection.gguf:
            self.suffix = f".{self.selection.label}"
        self.directory = store.commit_dir(order.name, listing.commit + self.suffix)
        self._parts = store.parts_dir(order.name)
        self._twins = self._find_twins()

    def run(self, transport: Transport) -> Pulled:
        wanted = self.wanted_files()
        known = self._known()
        missing = [file for file in wanted if file.path not in known]
        self.check_paths(missing)
        self._check_room(missing)
        held = sum(map(self.held, missing))
        total = sum(file.num_bytes for file in missing)
        if missing:
            title = f"{self.listing.repo} from {self.listing.source}"
            self.observer.begin(title, total, held)
        fetched = self.fetch(missing, transport)
        files = {**known, **fetched}
        try:
            manifest = self._finish(files, is_new=bool(missing))
        except OSError as error:
            raise disk_error(error, str(self.directory), "what was downloaded is kept") from error
        unverified = tuple(f.path for f in manifest.files if not f.source_digest)
        return Pulled(self.directory, manifest, total - held, unverified)

    def wanted_files(self) -> tuple[RemoteFile, ...]:
        """Those that serving needs, or that patterns choose. Raises HearthError."""
        for note in self.selection.notes:
            self.observer.note(note)
        self.store.check_names(file.path for file in self.selection.files)
        return self.selection.files

    def target_of(self, file: RemoteFile) -> Path:
        """Where a file has its place."""
        return self.directory / file.path

    def twin_of(self, file: RemoteFile) -> Path | None:
        """The same file in another commit's directory; its contents were not looked at."""
        return self._twins.get(str(file.digest)) if file.digest is not None else None

    def _known(self) -> dict[str, ManifestFile]:
        """What an earlier pull has placed and written down, as far as it is still there."""
        manifest = read_manifest(self.directory)
        found = {}
        for file in () if manifest is None else manifest.files:
            path = self.directory / file.path
            if path.is_file() and path.stat().st_size == file.num_bytes:
                found[file.path] = file
        return found

    def check_paths(self, files: Sequence[RemoteFile]) -> None:
        """No directory on the way to a file is a link that leads elsewhere."""
        for file in files:
            for parent in self.target_of(file).parents:
                if parent == self.store.root:
                    break
                if parent.is_symlink():
                    raise HearthError(
                        f"{parent} is a link; models are written into real directories only",
                        hint="remove the link",
                    )

    def _check_room(self, files: Sequence[RemoteFile]) -> None:
        """Raises CapacityError with the arithmetic."""
        total = sum(file.num_bytes for file in files)
        held = sum(map(self.held, files))
        needed = total - held + (MARGIN_BYTES if files else 0)
        free = shutil.disk_usage(existing_directory(self.directory)).free
        if needed > free:
            raise CapacityError(
                f"{self.listing.repo} needs {format_bytes(needed)} more ({len(files)} files of "
                f"{format_bytes(total)}, {format_bytes(held)} of them are here, "
                f"{format_bytes(MARGIN_BYTES)} to spare), {self.store.root} has "
                f"{format_bytes(free)} free: {format_bytes(needed - free)} short",
                hint="free space (hearth models), or name a larger disk with HEARTH_MODELS_DIR",
            )

    def fetch(self, files: Sequence[RemoteFile], transport: Transport) -> dict[str, ManifestFile]:
        """All files, several at a time; the first failure stops the others and is raised."""
        stopped = threading.Event()
        fetcher = Fetcher(transport, self.listing, self.source.refusal, self.observer, stopped)
        workers = max(1, min(self.order.num_workers, len(files)))
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
        part = self.part(file)
        try:
            sha256 = self._placed(file) or self._linked(file, part)
            if sha256 is None:
                sha256 = fetch_file(fetcher, file, part)
                place(part, self.target_of(file))
        except OSError as error:
            raise disk_error(error, str(self.directory), f"{part} is kept") from error
        given = "" if file.digest is None else str(file.digest)
        return ManifestFile(file.path, file.num_bytes, sha256.value, given)

    def _placed(self, file: RemoteFile) -> Digest | None:
        """The sha256 of a file that an earlier pull placed without living to write it down."""
        if file.digest is None or not self._is_there(file):
            return None
        path = self.target_of(file)
        if file_digest(path, file.digest.kind) == file.digest:
            return file_digest(path, "sha256")
        self.observer.advance(-file.num_bytes)
        return None

    def _linked(self, file: RemoteFile, part: Path) -> Digest | None:
        """The sha256 of a file that another commit holds, now linked into its place."""
        twin = self.twin_of(file)
        if twin is None or file.digest is None or self._is_there(file):
            return None
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.unlink(missing_ok=True)
            part.hardlink_to(twin)
            if file_digest(part, file.digest.kind) == file.digest:
                sha256 = file_digest(part, "sha256")
                place(part, self.target_of(file))
                return sha256
        except OSError:  # a file system without links
            pass
        # Never written to: it may be the other commit's file.
        part.unlink(missing_ok=True)
        self.observer.advance(-file.num_bytes)
        return None

    def _find_twins(self) -> dict[str, Path]:
        """Files of the other commits, by every checksum that is known of them."""
        found: dict[str, Path] = {}
        for model in self.store.revisions(self.order.name):
            if model.manifest is not None and model.path != self.directory:
                for file in model.manifest.files:
                    path = model.path / file.path
                    if path.is_file() and path.stat().st_size == file.num_bytes:
                        found[f"sha256 {file.sha256}"] = path
                        found[file.source_digest or f"sha256 {file.sha256}"] = path
        return found

    def _is_there(self, file: RemoteFile) -> bool:
        """Whether a file of this name and size is in its place."""
        path = self.target_of(file)
        if file.digest is None or path.is_symlink() or not path.is_file():
            return False
        return path.stat().st_size == file.num_bytes

    def held(self, file: RemoteFile) -> int:
        """How much of it is on the disk, in its place or as a part."""
        if self._is_there(file) or str(file.digest) in self._twins:
            return file.num_bytes
        return held_bytes(self.part(file), file)

    def _finish(self, files: dict[str, ManifestFile], *, is_new: bool) -> Manifest:
        old = read_manifest(self.directory)
        manifest = old
        # Chosen files that were there before do not make a whole model of those chosen now.
        is_chosen = self.order.has_patterns and (old is None or old.is_chosen)
        if is_new or manifest is None or manifest.is_chosen != is_chosen:
            now = utc_now()
            manifest = Manifest(
                model=self.listing.repo,
                revision=self.listing.revision,
                commit=self.listing.commit,
                source=self.listing.source,
                pulled_at=now,
                verified_at=now,
                files=tuple(files[path] for path in sorted(files)),
                is_chosen=is_chosen,
                gguf=self.selection.gguf,
            )
            write_manifest(self.directory, manifest)
        revision = ref_name(self.listing.revision, self.selection.label)
        self.store.set_ref(self.order.name, revision, self.directory.name)
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

    def part(self, file: RemoteFile) -> Path:
        """Where it is written before it is whole."""
        return part_path(self._parts, self.listing.commit, file)


def existing_directory(path: Path) -> Path:
    """The nearest directory above that exists."""
    return next(p for p in (path, *path.parents) if p.exists())


MakeAttempt: TypeAlias = Callable[[Store, Order, Source, Listing, Observer], Attempt]
