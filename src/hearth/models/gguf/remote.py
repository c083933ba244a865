"""A GGUF model on a hub as files here that have its headers and holes for its weights.

What reads a GGUF file reads these: a hole takes no space. Of the weights only the factors of
frequencies are fetched, which become part of the configuration; llama.cpp puts them first.
"""

from __future__ import annotations

import struct
from pathlib import Path

from hearth.core.errors import WeightsError
from hearth.core.units import format_bytes
from hearth.hub.describe import RemoteModel
from hearth.hub.gguf_files import SUFFIX
from hearth.hub.listing import RemoteFile
from hearth.models.gguf.file import MAGIC, front_bytes, read_gguf
from hearth.models.gguf.names import ROPE_FACTORS

# A vocabulary of 256,000 tokens with its merges takes some 12 MB.
MAX_REMOTE_HEADER_BYTES = 64 << 20
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")


def fetch_headers(remote: RemoteModel, directory: Path) -> Path:
    """Makes the files of the model that is meant; the one to read.

    Raises WeightsError, what the hub refuses, UnreachableError, RemoteError.
    """
    selection = remote.selection
    files = [file for file in selection.files if file.path.endswith(SUFFIX)]
    fronts = remote.read_fronts_of(files, _needed, len(MAGIC))
    try:
        for file in files:
            with (directory / file.path).open("wb") as out:
                out.truncate(file.num_bytes)
                out.write(fronts[file.path])
    except OSError as error:
        raise WeightsError(
            f"the header of {file.path} cannot be kept in {directory}: {error.strerror}",
            hint="set TMPDIR to a directory on a file system that has files with holes",
        ) from error
    path = directory / selection.gguf
    _fill_factors(path, len(fronts[path.name]))
    for name in _TOKENIZERS:  # with one beside it, none is made of the vocabulary
        if any(file.path == name for file in selection.files):
            (directory / name).touch()
    return path


def _needed(file: RemoteFile, front: bytes) -> int:
    path = Path(file.path)
    needed = front_bytes(path, front, file.num_bytes)
    if needed > MAX_REMOTE_HEADER_BYTES:
        raise WeightsError(
            f"{file.path}: its header has more than {format_bytes(MAX_REMOTE_HEADER_BYTES)}",
            hint="no model has as many: name another file",
        )
    with_factors = front_bytes(path, front, file.num_bytes, (ROPE_FACTORS,))
    return with_factors if with_factors <= MAX_REMOTE_HEADER_BYTES else needed


def _fill_factors(path: Path, num_known: int) -> None:
    """Ones for factors that lie far behind the header: a plan does not depend on their values."""
    entry = read_gguf(path, with_texts=False).tensors.get(ROPE_FACTORS)  # in the first part
    if entry is not None and num_known < entry.end <= entry.begin + MAX_REMOTE_HEADER_BYTES:
        with path.open("r+b") as out:
            out.seek(entry.begin)
            out.write(struct.pack("<f", 1.0) * ((entry.end - entry.begin) // 4))
