"""Reads safetensors headers and shard indices; every claim of a file is checked before use.

Format (github.com/huggingface/safetensors, "Format"): 8 bytes little-endian header length n, n
bytes of JSON {name: {dtype, shape, data_offsets: [begin, end]}}, then the data. Offsets are
relative to the data, without holes or overlaps. Nothing outside the model directory is named: a
shard is a plain file name. The same checks serve files on this machine and the beginnings of files
that are elsewhere: nothing but a file's front and its size is needed. Imports neither torch nor
numpy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from hearth.core.errors import ModelError, WeightsError
from hearth.models.config_json import read_json, shown

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
GGUF_FILE = "model.gguf"  # as hearth's own view of such a file calls it
LENGTH_BYTES = 8
# The limit of the reference implementation.
MAX_HEADER_BYTES = 100_000_000

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")

# Bytes an element of the format's types; the ones that we read are in weights.py.
ELEMENT_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor in a file: bytes `begin` … `end` − 1, counted from the start of the file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All tensors of a model directory by name. `files`: all that decide them, an index too."""

    tensors: Mapping[str, TensorEntry]
    files: tuple[Path, ...]


Header: TypeAlias = dict[str, TensorEntry]


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """Where weights lie: on this machine, or elsewhere.

    Their paths are `directory` and a name; an index is there in any case. `place` and `remedy` are
    for messages: what holds the files, and what to do where one is missing.
    """

    directory: Path
    names: frozenset[str]
    read_headers: Callable[[Sequence[Path]], Mapping[Path, Header]]
    place: str
    remedy: str


def read_checkpoint(directory: Path) -> Checkpoint:
    """Headers of `model.safetensors`, of the shards that its index names, or of `model.gguf`.

    Raises WeightsError: no weights, broken index or header, missing or truncated shard.
    """
    try:
        names = frozenset(path.name for path in directory.iterdir() if path.exists())
    except OSError as error:
        raise WeightsError(f"{directory}: cannot be read: {error.strerror}") from error
    if GGUF_FILE in names and not names & {SINGLE_FILE, INDEX_FILE}:
        from hearth.models.gguf.checkpoint import read_gguf_checkpoint  # it uses this module

        return read_gguf_checkpoint(directory / GGUF_FILE)
    remedy = "the download is incomplete: fetch the missing files"
    return checkpoint_of(WeightFiles(directory, names, _read_headers, str(directory), remedy))


def checkpoint_of(files: WeightFiles) -> Checkpoint:
    """As `read_checkpoint`; raises what `read_headers` raises, too."""
    single, index = files.directory / SINGLE_FILE, files.directory / INDEX_FILE
    if single.name in files.names:
        return Checkpoint(files.read_headers((single,))[single], (single,))
    if index.name not in files.names:
        raise _no_weights(files)
    weight_map = _read_index(index)
    paths = tuple(files.directory / name for name in sorted(set(weight_map.values())))
    missing = [path.name for path in paths if path.name not in files.names]
    if missing:
        raise WeightsError(
            f"{INDEX_FILE} names {len(paths)} files, of which {len(missing)} are missing: "
            f"{_listing(missing)}",
            hint=files.remedy,
        )
    headers = files.read_headers(paths)
    tensors = {}
    for name, file_name in weight_map.items():
        header = headers[files.directory / file_name]
        if name not in header:
            raise WeightsError(f"{INDEX_FILE}: tensor {name} is not in {file_name}")
        tensors[name] = header[name]
    # Of two shards that hold a tensor the index alone says which one counts.
    return Checkpoint(tensors, (index, *paths))


def _read_headers(paths: Sequence[Path]) -> dict[Path, Header]:
    return {path: read_header(path) for path in paths}


def read_header(path: Path) -> Header:
    """The tensors of one file. Raises WeightsError when the header or the size is wrong."""
    try:
        num_bytes = path.stat().st_size
        with path.open("rb") as file:
            front = file.read(LENGTH_BYTES)
            front += file.read(front_bytes(path, front, num_bytes) - len(front))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    return parse_header(path, front, num_bytes)


def front_bytes(path: Path, begin: bytes, num_bytes: int) -> int:
    """Bytes of a file up to its data, from its first LENGTH_BYTES bytes and its size.

    Raises WeightsError where the file cannot have as many.
    """
    length = int.from_bytes(begin[:LENGTH_BYTES], "little")
    if len(begin) < LENGTH_BYTES:
        raise WeightsError(
            f"{path.name}: has {num_bytes} bytes; a safetensors file has at least {LENGTH_BYTES}",
            hint=_REFETCH,
        )
    if length > MAX_HEADER_BYTES or length > num_bytes - LENGTH_BYTES:
        raise WeightsError(
            f"{path.name}: header length is {length:,} bytes; permitted: up to "
            f"{min(MAX_HEADER_BYTES, num_bytes - LENGTH_BYTES):,}",
            hint="the file is truncated or not safetensors (a Git LFS pointer?): fetch it again",
        )
    return LENGTH_BYTES + length


def parse_header(path: Path, front: bytes, num_bytes: int) -> Header:
    """The tensors of a file of `num_bytes` that begins with `front`, of at least `front_bytes`.

    Raises WeightsError when the header or the size is wrong.
    """
    data_begin = front_bytes(path, front, num_bytes)
    values = _parse_json(path, front[LENGTH_BYTES:data_begin])
    values.pop("__metadata__", None)
    entries = {name: _entry(path, name, value, data_begin) for name, value in values.items()}
    _check_extents(path, entries, data_begin, num_bytes)
    return entries


def read_metadata(path: Path) -> dict[str, str]:
    """The free texts of a file's header, which `read_header` has read before."""
    with path.open("rb") as file:
        values = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    metadata = values.get("__metadata__")
    if not isinstance(metadata, dict):
        return {}
    return {str(key): value for key, value in metadata.items() if isinstance(value, str)}


def _parse_json(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        values = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path.name}: the header is not valid JSON: {error}", hint=_REFETCH
        ) from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path.name}: the header holds {shown(values)}, not an object")
    return values


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} appears twice")
    return values


def _entry(path: Path, name: str, value: object, data_begin: int) -> TensorEntry:
    """Checks the types and the size of one header entry."""
    where = f"{path.name}: tensor {name}"
    if not isinstance(value, dict):
        raise WeightsError(f"{where}: the header entry is {shown(value)}, not an object")
    dtype, shape, offsets = (value.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in ELEMENT_BYTES:
        raise WeightsError(
            f"{where}: dtype is {shown(dtype)}; permitted: {', '.join(ELEMENT_BYTES)}"
        )
    if not isinstance(shape, list) or not all(_is_size(size) for size in shape):
        raise WeightsError(f"{where}: shape is {shown(shape)}; permitted: a list of sizes")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(_is_size(offset) for offset in offsets)
        or offsets[0] > offsets[1]
    ):
        raise WeightsError(
            f"{where}: data_offsets is {shown(offsets)}; permitted: [begin, end], begin ≤ end"
        )
    begin, end = offsets
    expected = math.prod(shape) * ELEMENT_BYTES[dtype]
    if end - begin != expected:
        raise WeightsError(
            f"{where}: {dtype} {shape} needs {expected:,} bytes, data_offsets give {end - begin:,}"
        )
    return TensorEntry(path, name, dtype, tuple(shape), data_begin + begin, data_begin + end)


def _check_extents(
    path: Path, entries: Mapping[str, TensorEntry], data_begin: int, num_bytes: int
) -> None:
    """The tensors fill the file exactly: no hole, no overlap, nothing beyond the end."""
    position = data_begin
    for entry in sorted(entries.values(), key=lambda e: (e.begin, e.end)):
        if entry.end > num_bytes:
            raise WeightsError(
                f"{path.name}: is truncated: tensor {entry.name} ends at byte {entry.end:,}, the "
                f"file has {num_bytes:,}",
                hint=_REFETCH,
            )
        if entry.begin != position:
            problem = "overlaps the tensor before it" if entry.begin < position else "leaves a hole"
            raise WeightsError(
                f"{path.name}: tensor {entry.name} begins at byte {entry.begin:,} where "
                f"{position:,} is expected: it {problem}",
                hint=_REFETCH,
            )
        position = entry.end
    if position != num_bytes:
        raise WeightsError(
            f"{path.name}: the tensors end at byte {position:,}, the file has {num_bytes:,}",
            hint=_REFETCH,
        )


def _read_index(path: Path) -> dict[str, str]:
    """The `weight_map` of an index; its file names stay within the directory."""
    try:
        weight_map = read_json(path).values.get("weight_map")
    except ModelError as error:
        raise WeightsError(error.message) from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(
            f"{path.name}: weight_map is {shown(weight_map)}; permitted: tensor → file name"
        )
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or not _is_plain_name(file_name):
            raise WeightsError(
                f"{path.name}: tensor {name} is in {shown(file_name)}; permitted: a file name "
                "within the model directory"
            )
    return weight_map


def _is_plain_name(name: str) -> bool:
    return name not in ("", ".", "..") and not any(c in name for c in "/\\\0")


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _no_weights(files: WeightFiles) -> WeightsError:
    others = sorted(name for name in files.names if name.endswith(_WEIGHT_SUFFIXES))
    found = f"; it holds {_listing(others)}" if others else ""
    hint = "download the weights as safetensors, or use --load-format dummy for random ones"
    return WeightsError(
        f"{files.place} holds neither {SINGLE_FILE} nor {INDEX_FILE}{found}", hint=hint
    )


def _listing(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


_REFETCH = "the file is damaged or its download was cut short: fetch it again"
