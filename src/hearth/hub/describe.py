"""A model of a hub before its weights are downloaded: its description, and their headers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hearth.core.errors import ModelNotFoundError, UnreachableError
from hearth.hub.download import Fetcher, StoppedError, fetch_file
from hearth.hub.fronts import Needed, read_fronts
from hearth.hub.gguf_choice import Selection
from hearth.hub.gguf_files import SUFFIX
from hearth.hub.listing import Listing, RemoteFile
from hearth.hub.names import ModelName
from hearth.hub.observer import Silent
from hearth.hub.selection import select
from hearth.hub.sources import Source
from hearth.hub.transport import Transport

_CONFIG = "config.json"
_WEIGHTS = (".safetensors", SUFFIX)
_BESIDE = ("generation_config.json", "preprocessor_config.json")
MAX_DESCRIPTION_BYTES = 64 << 20

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Description:
    """`download_bytes`: of everything that serving needs; `weight_bytes`: of the weights in it."""

    source: str
    commit: str
    download_bytes: int
    weight_bytes: int


class RemoteModel:
    """A revision on a hub, of which single files are read."""

    def __init__(
        self,
        listing: Listing,
        source: Source,
        transport: Transport,
        stopped: threading.Event,
        tag: str | None = None,
    ) -> None:
        """Once `stopped` is set, every method raises UnreachableError: the time is over.

        `tag`: of the GGUF model that is meant.
        """
        self.listing = listing
        self._tag = tag
        self._fetcher = Fetcher(transport, listing, source.refusal, Silent(), stopped)
        self._files = {file.path: file for file in listing.files}

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.listing.repo} on {self.listing.source}"

    @property
    def names(self) -> frozenset[str]:
        """Of the files at the top."""
        return frozenset(path for path in self._files if "/" not in path)

    def num_bytes(self, path: str) -> int:
        """Of a file that is listed."""
        return self._files[path].num_bytes

    @property
    def may_be_gguf(self) -> bool:
        """Whether a GGUF model is named, or listed."""
        return self._tag is not None or any(path.endswith(SUFFIX) for path in self._files)

    @property
    def selection(self) -> Selection:
        """What a pull would take. Raises as `select` does."""
        return select(self.listing, tag=self._tag)

    def description(self) -> Description:
        """Raises as `select` does, for a model without weights that hearth reads as well."""
        files = self.selection.files
        weights = (file.num_bytes for file in files if file.path.endswith(_WEIGHTS))
        total = sum(file.num_bytes for file in files)
        return Description(self.listing.source, self.listing.commit, total, sum(weights))

    def fetch_description(self, directory: Path) -> None:
        """Puts the files that describe the model into a directory.

        Raises ModelNotFoundError without a config.json, and as `fetch`.
        """
        if _CONFIG not in self._files:
            raise ModelNotFoundError(
                f"{self.listing.repo} has no {_CONFIG} on {self.listing.source}",
                hint="name a model in the format of Hugging Face: config.json and *.safetensors",
            )
        for path in (_CONFIG, *_BESIDE):
            if path in self._files:
                self.fetch(path, directory)

    def fetch(self, path: str, directory: Path) -> None:
        """A small file at the top of the listing, verified.

        Raises what the source refuses, UnreachableError, RemoteError, ChecksumError.
        """
        file = self._files[path]
        if file.num_bytes > MAX_DESCRIPTION_BYTES:
            raise ModelNotFoundError(f"{path} of {self.listing.repo} is no description")
        part = directory / f"{path}.part"
        try:
            fetch_file(self._fetcher, file, part)
        except StoppedError:
            raise self._too_slow() from None
        part.replace(directory / path)

    def read_fronts(self, paths: Sequence[str], needed: Needed, min_bytes: int) -> dict[str, bytes]:
        """See `fronts.read_fronts`."""
        return self.read_fronts_of([self._files[path] for path in paths], needed, min_bytes)

    def read_fronts_of(
        self, files: Sequence[RemoteFile], needed: Needed, min_bytes: int
    ) -> dict[str, bytes]:
        """As `read_fronts`, of files that a selection calls otherwise than the listing does."""
        try:
            return read_fronts(self._fetcher, files, needed, min_bytes)
        except StoppedError:
            raise self._too_slow() from None

    def _too_slow(self) -> UnreachableError:
        return UnreachableError(
            f"{self.listing.source} is too slow to say what {self.listing.repo} is",
            hint="try again later, or name another --source",
        )


def ask(
    name: ModelName,
    sources: Sequence[Source],
    transport: Transport,
    stopped: threading.Event,
    look: Callable[[RemoteModel], _T],
) -> _T:
    """What `look` finds at the first hub that answers.

    Raises UnreachableError where none does, else what a source or `look` raises.
    """
    tried: list[str] = []
    for source in sources:
        try:
            listing = source.list_files(name, transport)
            return look(RemoteModel(listing, source, transport, stopped, name.tag))
        except UnreachableError as error:
            tried.append(f"{source.label}: {error.message}")
    raise UnreachableError(
        f"no hub answers that may have {name}: {'; '.join(tried)}",
        hint="check the network, or name a source with --source",
    )
