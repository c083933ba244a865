"""`pull` with a converter: each file of weights is turned into another as soon as it is here.

    fetch all but weights ─▶ how large will it be? ─▶ room? ─▶ for each file of weights:
    fetch ─ verified ─ convert ─▶ placed ─ original removed ─▶ index, config.json ─▶ manifest ─▶ ref

The disk never holds more than the result and one file of the source. The result lies beside the
model's own commits, under its commit and the converter's label. A kill anywhere leaves what was
converted, and part of what was being fetched; config.json and the manifest come last.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from hearth.core.errors import CapacityError, ConfigError
from hearth.core.units import format_bytes
from hearth.hub.digests import file_digest
from hearth.hub.download import Fetcher, StoppedError, disk_error, fetch_file, held_bytes
from hearth.hub.listing import Listing, RemoteFile
from hearth.hub.manifest import Manifest, ManifestFile, write_manifest
from hearth.hub.names import DEFAULT_REVISION, ModelName
from hearth.hub.observer import Observer
from hearth.hub.pull import MARGIN_BYTES, Attempt, Order, Pulled, existing_directory
from hearth.hub.selection import is_weight
from hearth.hub.sources import Source
from hearth.hub.store import Store, is_whole, utc_now
from hearth.hub.transport import Transport

_SOURCE = ".source"  # of files that the converter reads and that the result has in another form
_CONFIG, _INDEX = "config.json", "model.safetensors.index.json"


class Converter(Protocol):
    """What makes other files of a model's weights; it may be asked again after a kill."""

    @property
    def label(self) -> str:
        """Names the result, such as int4-g128."""
        ...

    def begin(self, description: Path) -> int:
        """Reads the model's config.json in a directory; the bytes that all results will have."""
        ...

    def is_made(self, target: Path, identity: str) -> bool:
        """Whether the target was made of the file that `identity` names."""
        ...

    def convert(
        self, source: Path, target: Path, identity: str, on_bytes: Callable[[int], None]
    ) -> None:
        """Writes the target, whole or not at all; `on_bytes(n)`: n more of the source's are done.

        Only takes note of a target that is made already.
        """
        ...

    def finish(self, directory: Path, config: Path) -> None:
        """Writes what describes all targets, `config.json` last."""
        ...


class ConvertingAttempt(Attempt):
    """One attempt with one source; the lock is held."""

    def __init__(
        self,
        converter: Converter,
        store: Store,
        order: Order,
        source: Source,
        listing: Listing,
        observer: Observer,
    ) -> None:
        self._converter = converter
        self.suffix = f".{converter.label}"
        super().__init__(store, order, source, listing, observer)
        if self.selection.gguf:
            raise ConfigError(
                f"--quantize converts safetensors; {listing.repo} has none, and GGUF files are "
                "codes already",
                hint="leave out --quantize, or name the repository of the original",
            )

    def run(self, transport: Transport) -> Pulled:
        """Fetches and converts what is missing."""
        for model in self.store.revisions(self.order.name):
            if model.path == self.directory and model.manifest is not None and is_whole(model):
                self._note_ref()
                return Pulled(self.directory, model.manifest)
        wanted = self.wanted_files()
        weights = sorted((f for f in wanted if is_weight(f.path)), key=lambda f: f.path)
        others = [f for f in wanted if not is_weight(f.path) and f.path != _INDEX]
        self.check_paths(others)
        self.observer.begin(
            f"{self.listing.repo} from {self.listing.source}, as {self._converter.label}",
            sum(file.num_bytes for file in (*others, *weights)),
            sum(map(self.held, others)),
        )
        fetched = self.fetch(others, transport)
        config = self.directory / _SOURCE / _CONFIG
        result_bytes = self._converter.begin(config.parent)
        self._check_room_for(weights, result_bytes)
        num_fetched = sum(file.num_bytes for file in fetched.values())
        for file in weights:
            num_fetched += self._convert_one(file, transport)
        try:
            self._converter.finish(self.directory, config)
            manifest = self._write_manifest()
        except OSError as error:
            raise disk_error(error, str(self.directory), "what was converted is kept") from error
        return Pulled(self.directory, manifest, num_fetched)

    def target_of(self, file: RemoteFile) -> Path:
        """Where a file goes: one that the result has in another form stands apart."""
        if file.path == _CONFIG:
            return self.directory / _SOURCE / _CONFIG
        return super().target_of(file)

    def _convert_one(self, file: RemoteFile, transport: Transport) -> int:
        """The bytes that had to be fetched."""
        target, part = self.directory / file.path, self.part(file)
        identity = str(file.digest) if file.digest else f"{self.listing.commit} {file.path}"
        if self._converter.is_made(target, identity):
            self._converter.convert(part, target, identity, _ignore)
            self.observer.advance(file.num_bytes)
            return 0
        held = held_bytes(part, file)
        twin = self.twin_of(file)
        if twin is not None:  # another revision of the model holds it
            self.observer.advance(file.num_bytes)
            self.observer.note(f"{file.path}: converting")
            self._converter.convert(twin, target, identity, _ignore)
            return 0
        self.observer.advance(held)
        stopped = threading.Event()
        fetcher = Fetcher(transport, self.listing, self.source.refusal, self.observer, stopped)
        try:
            fetch_file(fetcher, file, part)
            self.observer.note(f"{file.path}: converting")
            self._converter.convert(part, target, identity, _ignore)
            part.unlink()
        except OSError as error:
            raise disk_error(error, str(self.directory), f"{part} is kept") from error
        except StoppedError as error:
            raise AssertionError("nobody stops the only download") from error
        return file.num_bytes - held

    def _check_room_for(self, weights: Sequence[RemoteFile], result_bytes: int) -> None:
        """For the rest of the result and the largest file that is still to come."""
        made = sum(t.stat().st_size for f in weights if (t := self.directory / f.path).exists())
        missing = [f for f in weights if not (self.directory / f.path).exists()]
        largest = max((f.num_bytes - held_bytes(self.part(f), f) for f in missing), default=0)
        needed = max(0, result_bytes - made) + largest + MARGIN_BYTES
        free = shutil.disk_usage(existing_directory(self.directory)).free
        if missing and needed > free:
            raise CapacityError(
                f"{self.listing.repo} as {self._converter.label} needs {format_bytes(needed)} more "
                f"({format_bytes(max(0, result_bytes - made))} of the result and "
                f"{format_bytes(largest)} of one file of the source), {self.store.root} has "
                f"{format_bytes(free)} free: {format_bytes(needed - free)} short",
                hint="free space (hearth models), or name a larger disk with HEARTH_MODELS_DIR",
            )

    def _write_manifest(self) -> Manifest:
        """With the checksums of what was written; the source gives none for it."""
        shutil.rmtree(self.directory / _SOURCE)
        files = []
        for path in sorted(p for p in self.directory.rglob("*") if p.is_file()):
            name = str(path.relative_to(self.directory))
            if not name.endswith(".part"):
                sha256 = file_digest(path, "sha256").value
                files.append(ManifestFile(name, path.stat().st_size, sha256, ""))
        now = utc_now()
        listing = self.listing
        manifest = Manifest(
            model=listing.repo,
            revision=self._revision,
            commit=listing.commit,
            source=listing.source,
            pulled_at=now,
            verified_at=now,
            files=tuple(files),
            converted=self._converter.label,
        )
        write_manifest(self.directory, manifest)
        self._note_ref()
        return manifest

    @property
    def _revision(self) -> str:
        """As the user may name the result."""
        return str(converted_name(self.order.name, self._converter.label).revision)

    def _note_ref(self) -> None:
        self.store.set_ref(self.order.name, self._revision, self.directory.name)


def converted_name(name: ModelName, label: str) -> ModelName:
    """How a converted model is named."""
    return replace(name, revision=f"{name.revision or DEFAULT_REVISION}+{label}")


def _ignore(_: int) -> None:
    """Progress counts what is fetched."""
