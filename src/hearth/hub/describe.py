"""What a model of a hub is, before its weights are downloaded: its description and their size."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hearth.core.errors import ModelNotFoundError, UnreachableError
from hearth.hub.download import Fetcher, fetch_file
from hearth.hub.listing import Listing, RemoteFile
from hearth.hub.names import ModelName
from hearth.hub.observer import Observer
from hearth.hub.selection import select
from hearth.hub.sources import Source
from hearth.hub.transport import Transport

_CONFIG = "config.json"
_DESCRIPTION = (_CONFIG, "generation_config.json", "preprocessor_config.json")
MAX_DESCRIPTION_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Description:
    """`download_bytes`: of everything that serving needs; `weight_bytes`: of the weights in it."""

    source: str
    commit: str
    download_bytes: int
    weight_bytes: int


def describe(
    name: ModelName,
    sources: Sequence[Source],
    transport: Transport,
    directory: Path,
    observer: Observer,
) -> Description:
    """Fetches the files that describe a model into a directory, from the first hub that answers.

    Raises UnreachableError where none does, ModelNotFoundError, GatedModelError, RemoteError,
    ChecksumError, ModelError for a model without weights that hearth reads.
    """
    tried: list[str] = []
    for source in sources:
        try:
            listing = source.list_files(name, transport)
            _fetch(listing, source, transport, directory, observer)
        except UnreachableError as error:
            tried.append(f"{source.label}: {error.message}")
            continue
        files = select(listing)
        weights = (file.num_bytes for file in files if file.path.endswith(".safetensors"))
        total = sum(file.num_bytes for file in files)
        return Description(listing.source, listing.commit, total, sum(weights))
    raise UnreachableError(
        f"no hub answers that may have {name}: {'; '.join(tried)}",
        hint="check the network, or name a source with --source",
    )


def _fetch(
    listing: Listing, source: Source, transport: Transport, directory: Path, observer: Observer
) -> None:
    wanted = [file for file in listing.files if file.path in _DESCRIPTION]
    if not any(file.path == _CONFIG for file in wanted):
        raise ModelNotFoundError(
            f"{listing.repo} has no {_CONFIG} on {listing.source}",
            hint="name a model in the format of Hugging Face: config.json and *.safetensors",
        )
    fetcher = Fetcher(transport, listing, source.refusal, observer, threading.Event())
    for file in wanted:
        _fetch_one(fetcher, file, directory)


def _fetch_one(fetcher: Fetcher, file: RemoteFile, directory: Path) -> None:
    if file.num_bytes > MAX_DESCRIPTION_BYTES:
        raise ModelNotFoundError(f"{file.path} of {fetcher.listing.repo} is no description")
    part = directory / f"{file.path}.part"
    fetch_file(fetcher, file, part)
    part.replace(directory / file.path)
