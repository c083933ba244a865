"""The tensors of a model on a hub, from its index and the headers of its shards alone.

The headers are checked as those of files on this machine are: see `safetensors_file`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hearth.hub.describe import RemoteModel
from hearth.hub.listing import RemoteFile
from hearth.models.safetensors_file import (
    INDEX_FILE,
    LENGTH_BYTES,
    SINGLE_FILE,
    Checkpoint,
    Header,
    WeightFiles,
    checkpoint_of,
    front_bytes,
    parse_header,
)


def read_remote_checkpoint(remote: RemoteModel, directory: Path) -> Checkpoint:
    """Its entries' paths lie in `directory`, where the index is put and no weight.

    Raises WeightsError as `read_checkpoint` does, and what the hub refuses, UnreachableError,
    RemoteError, ChecksumError.
    """
    if SINGLE_FILE not in remote.names and INDEX_FILE in remote.names:
        remote.fetch(INDEX_FILE, directory)

    def read_headers(paths: Sequence[Path]) -> dict[Path, Header]:
        fronts = remote.read_fronts([path.name for path in paths], _needed, LENGTH_BYTES)
        return {
            path: parse_header(path, fronts[path.name], remote.num_bytes(path.name))
            for path in paths
        }

    remedy = "the model is not whole there: name another revision, or another --source"
    return checkpoint_of(WeightFiles(directory, remote.names, read_headers, remote.place, remedy))


def _needed(file: RemoteFile, begin: bytes) -> int:
    return front_bytes(Path(file.path), begin, file.num_bytes)
