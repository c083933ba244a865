"""What a pulled model consists of: written last, so that a model with a manifest is whole.

`.hearth.json` in the model's directory. A file in it was verified when it was written; whether it
still is what it was, `store.verify` tells.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from hearth.core.errors import ModelError
from hearth.hub.download import sync_directory
from hearth.hub.listing import MANIFEST, is_inside

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """`source_digest`: what the source gave and the file was compared with; empty: nothing."""

    path: str
    num_bytes: int
    sha256: str
    source_digest: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A pulled revision. Times are UTC, as RFC 3339 writes them.

    `is_chosen`: patterns of the user's chose the files, so that some that serving needs may be
    missing. `converted`: the files are not the source's, but what was made of them (int4-g128).
    `gguf`: the file of the GGUF model that this is, the first of its parts; empty: it is none.
    """

    model: str
    revision: str
    commit: str
    source: str
    pulled_at: str
    verified_at: str
    files: tuple[ManifestFile, ...]
    is_chosen: bool = False
    converted: str = ""
    gguf: str = ""
    schema: int = SCHEMA

    @property
    def num_bytes(self) -> int:
        """All files together."""
        return sum(file.num_bytes for file in self.files)


def read_manifest(directory: Path) -> Manifest | None:
    """None where there is none. Raises ModelError for one that cannot be read."""
    import msgspec

    path = directory / MANIFEST
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path} is not a manifest: {error}", hint="remove it and pull the model again"
        ) from error
    if manifest.schema != SCHEMA:
        raise ModelError(
            f"{path} has the schema {manifest.schema}, this version knows {SCHEMA}",
            hint="use the version of hearth that wrote it, or remove it and pull again",
        )
    # It may have come with a directory from elsewhere, and what it names is read, copied, compared.
    outside = [file.path for file in manifest.files if not is_inside(file.path)]
    if outside:
        raise ModelError(
            f"{path} names {outside[0][:200]!r}, which is no path within a model",
            hint="remove it and pull the model again",
        )
    return manifest


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Durable and whole, or not there at all. Raises OSError."""
    path = directory / MANIFEST
    draft = directory / f"{MANIFEST}.part"
    with draft.open("w", encoding="utf-8") as file:
        json.dump(asdict(manifest), file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_directory(directory)
