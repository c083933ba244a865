"""The file of packed weights: the bytes that the kernels read, as they lie in memory.

    0     magic
    8     FORMAT_VERSION, then the length n of the header: two uint32, little-endian
    16    BLAKE2b-256 of the header
    48    the header: n bytes of JSON, a `PackedHeader`
    …     zeros up to `data_begin`, a multiple of PAGE_BYTES
    data  the tensors, each at its `offset` from `data_begin`, a multiple of PAGE_BYTES

Any packed layout fits: what belongs to one weight (data, scales, zero points) is a tensor each,
told apart by `layout`. The header's checksum is always verified, those of the tensors only when
asked: they take as long as reading the whole file. Checksums detect accidents; against malice
stands the directory's mode, as for the model itself.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from hashlib import blake2b

import msgspec

from hearth.core.units import round_up

FORMAT_VERSION = 1
PAGE_BYTES = 4096
MAGIC = b"HEARTHPW"
_PREFIX_BYTES = 48
# Far above any real header (a tensor takes about 120 bytes).
_MAX_HEADER_BYTES = 64 << 20
_UNKNOWN_CRC = "00000000"
_CRC_STEP_BYTES = 16 << 20


class PackedFileError(Exception):
    """A file is not what it should be; the message says in what."""


class PackedTensor(msgspec.Struct, frozen=True):
    """One tensor: `layout` and `dtype` in the words of the kernels, `shape` before packing."""

    name: str
    layout: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int
    crc32: str = _UNKNOWN_CRC  # eight hexadecimal digits


class PackedHeader(msgspec.Struct, frozen=True):
    """What a file holds. `key` names everything that decided its bytes."""

    key: str
    num_bytes: int  # of the data
    tensors: tuple[PackedTensor, ...]

    def without_checksums(self) -> PackedHeader:
        """What is known before the bytes are."""
        tensors = (msgspec.structs.replace(t, crc32=_UNKNOWN_CRC) for t in self.tensors)
        return msgspec.structs.replace(self, tensors=tuple(tensors))


def encode_header(header: PackedHeader) -> bytes:
    """Everything before the data. Its length does not depend on the checksums' values."""
    text = msgspec.json.encode(header)
    prefix = MAGIC + FORMAT_VERSION.to_bytes(4, "little") + len(text).to_bytes(4, "little")
    whole = prefix + blake2b(text, digest_size=32).digest() + text
    return whole.ljust(round_up(len(whole), PAGE_BYTES), b"\0")


def read_header(fd: int) -> PackedHeader:
    """The header of an open file. Raises PackedFileError, OSError."""
    prefix = os.pread(fd, _PREFIX_BYTES, 0)
    if len(prefix) < _PREFIX_BYTES or not prefix.startswith(MAGIC):
        raise PackedFileError("it is not a file of packed weights")
    version, length = (int.from_bytes(prefix[i : i + 4], "little") for i in (8, 12))
    if version != FORMAT_VERSION:
        raise PackedFileError(f"its format is {version}, not {FORMAT_VERSION}")
    if length > _MAX_HEADER_BYTES:
        raise PackedFileError(f"its header claims {length:,} bytes")
    text = os.pread(fd, length, _PREFIX_BYTES)
    if blake2b(text, digest_size=32).digest() != prefix[16:]:
        raise PackedFileError("its header does not match the header's checksum")
    try:
        return msgspec.json.decode(text, type=PackedHeader)
    except msgspec.DecodeError as error:
        raise PackedFileError(f"its header cannot be read: {error}") from error


def check_file(fd: int, wanted: PackedHeader) -> PackedHeader:
    """The header of a file that holds what is wanted, whole. Raises PackedFileError, OSError."""
    found = read_header(fd)
    if found.without_checksums() != wanted:
        raise PackedFileError("it describes other tensors")
    expected = len(encode_header(found)) + found.num_bytes
    if (size := os.fstat(fd).st_size) != expected:
        raise PackedFileError(f"it has {size:,} bytes instead of {expected:,}")
    return found


def with_checksums(header: PackedHeader, data: memoryview) -> PackedHeader:
    """The header with the checksums of `data`, in which the tensors lie."""
    tensors = (
        msgspec.structs.replace(t, crc32=_crc32(data[t.offset : t.offset + t.num_bytes]))
        for t in header.tensors
    )
    return msgspec.structs.replace(header, tensors=tuple(tensors))


def damaged_tensors(header: PackedHeader, data: memoryview) -> Iterable[str]:
    """Names of the tensors whose bytes do not match their checksums. Reads everything."""
    actual = with_checksums(header, data)
    return (a.name for a, b in zip(actual.tensors, header.tensors) if a.crc32 != b.crc32)


def _crc32(data: memoryview) -> str:
    """In steps, so that a thread that computes it lets others run (zlib releases the GIL)."""
    value = 0
    for begin in range(0, len(data), _CRC_STEP_BYTES):
        value = zlib.crc32(data[begin : begin + _CRC_STEP_BYTES], value)
    return f"{value:08x}"
