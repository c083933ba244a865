"""Reads a GGUF header; every claim of the file is checked before anything is taken for it.

Layout (docs/gguf.md, versions 2 and 3, little-endian): magic, version, number of tensors and of
metadata pairs; the pairs (key, type, value); for each tensor its name, dimensions (the fastest
first), type and offset; padding to `general.alignment`; data. A count is believed only as far as
the file has bytes for it, so that no claim makes anybody allocate.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from hearth.core.errors import WeightsError
from hearth.models.safetensors_file import TensorEntry

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 512 << 20
MAX_TENSORS = 1 << 20
LEAST_GROWN_BYTES = 1 << 20  # a vocabulary of 32,000 tokens takes about as much
_MAX_ELEMENTS = 1 << 24  # of an array
_MAX_DIMENSIONS = 4
_MAX_DEPTH = 4

Value: TypeAlias = "int | float | bool | str | list[Value]"


@dataclass(frozen=True, slots=True)
class BlockType:
    """A tensor type: so many elements of a row lie in one block of so many bytes."""

    name: str
    elements: int
    num_bytes: int


# By their number in the file; those that are read.
TYPES = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    30: BlockType("BF16", 1, 2),
}
_UNREAD = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16",
    26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufFile:
    """Metadata by key, and tensors by llama.cpp's names; shapes are [rows, columns]."""

    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorEntry]


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF file does; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_gguf(path: Path, *, with_texts: bool = True) -> GgufFile:
    """The header of a file.

    `with_texts` False: lists of texts are checked and left empty: a third of the time where the
    vocabulary has 150,000 tokens. Raises WeightsError: truncated, damaged, or a type that is not
    read.
    """
    try:
        num_bytes = path.stat().st_size
        if num_bytes < len(MAGIC):
            raise _damaged(path, f"has {num_bytes} bytes")
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        ):
            return _Reader(path, mapped, len(mapped), with_texts).read()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error


def front_bytes(path: Path, front: bytes, num_bytes: int, tensors: Collection[str] = ()) -> int:
    """Bytes up to the end of the header, of a file of `num_bytes` that begins with `front`.

    Up to the end of those `tensors`, too, that it has. Where `front` is too short to tell, more
    than it has, to be asked again with. Raises WeightsError as `read_gguf` does.
    """
    reader = _Reader(path, front, num_bytes, with_texts=False)
    try:
        found = reader.read().tensors
    except _ShortError as error:
        return min(max(error.end, 2 * len(front), LEAST_GROWN_BYTES), num_bytes)
    return max([reader.at, *(found[name].end for name in tensors if name in found)])


class _ShortError(Exception):
    """What is at hand of a file ends before byte `end`, and the file itself does not."""

    def __init__(self, end: int) -> None:
        super().__init__(end)
        self.end = end


class _Reader:
    """A position in a mapped file, or in its front, that never passes the file's end."""

    def __init__(
        self, path: Path, mapped: mmap.mmap | bytes, num_bytes: int, with_texts: bool = True
    ) -> None:
        self.path, self.mapped, self.num_bytes = path, mapped, num_bytes
        self.with_texts = with_texts
        self.limit = min(num_bytes, MAX_HEADER_BYTES)
        self.here = len(mapped)
        self.at = 0

    def read(self) -> GgufFile:
        magic = self.take(len(MAGIC), "its magic")
        if magic != MAGIC:
            raise _damaged(self.path, f"begins with {magic!r}, a GGUF file with {MAGIC!r}")
        (version,) = self.numbers("I", 1, "its version")
        if version not in VERSIONS:
            other = " (a big-endian file?)" if version >= 1 << 16 else ""
            raise WeightsError(
                f"{self.path.name}: GGUF version is {version}{other}; permitted: "
                f"{', '.join(map(str, VERSIONS))}",
                hint="convert the model again with a current llama.cpp",
            )
        num_tensors, num_pairs = self.size("its counts"), self.size("its counts")
        self.believe(num_pairs, 13, "metadata pairs")
        self.believe(num_tensors, 24, "tensors")
        if num_tensors > MAX_TENSORS:
            raise _damaged(self.path, f"claims {num_tensors:,} tensors")
        metadata: dict[str, Value] = {}
        for _ in range(num_pairs):
            key = self.name("a metadata key")
            if key in metadata:
                raise _damaged(self.path, f"has the metadata key {key} twice")
            (kind,) = self.numbers("I", 1, key)
            metadata[key] = self.value(int(kind), key, 0)
        claims = [self.tensor() for _ in range(num_tensors)]
        return GgufFile(self.path, metadata, self.placed(claims, _alignment(self.path, metadata)))

    def take(self, count: int, what: str) -> bytes:
        if count > self.limit - self.at:
            raise _damaged(
                self.path, f"ends within {what}: {count:,} bytes are claimed at {self.at:,}"
            )
        if self.at + count > self.here:
            raise _ShortError(self.at + count)
        self.at += count
        return self.mapped[self.at - count : self.at]

    def numbers(self, code: str, count: int, what: str) -> tuple[int | float | bool, ...]:
        raw = self.take(count * struct.calcsize(f"<{code}"), what)
        return struct.unpack(f"<{count}{code}", raw)

    def size(self, what: str) -> int:
        return int(self.numbers("Q", 1, what)[0])

    def believe(self, count: float, least_bytes: int, what: str) -> None:
        """A count for which the file has no bytes is none."""
        if count * least_bytes > self.limit - self.at:
            raise _damaged(
                self.path,
                f"claims {count:,} {what}, for which {self.limit - self.at:,} bytes are left",
            )

    def text(self, what: str) -> bytes:
        return self.take(self.size(what), what)

    def name(self, what: str) -> str:
        try:
            return self.text(what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _damaged(self.path, f"has {what} that is no UTF-8") from error

    def value(self, kind: int, key: str, depth: int) -> Value:
        if kind == _STRING:
            return self.text(key).decode("utf-8", "replace")
        if kind == _ARRAY:
            return self.array(key, depth)
        if kind not in _NUMBERS:
            raise _damaged(self.path, f"gives {key} the unknown type {kind}")
        return self.numbers(_NUMBERS[kind], 1, key)[0]

    def array(self, key: str, depth: int) -> Value:
        (kind,) = self.numbers("I", 1, key)
        count = self.size(key)
        least = struct.calcsize(f"<{_NUMBERS[int(kind)]}") if kind in _NUMBERS else 8
        self.believe(count, least, f"elements of {key}")
        if count > _MAX_ELEMENTS or depth >= _MAX_DEPTH:
            raise _damaged(self.path, f"claims {count:,} elements of {key}, {depth} deep")
        if kind in _NUMBERS:
            return list(self.numbers(_NUMBERS[int(kind)], count, key))
        if kind == _STRING:
            return self.texts(count, key)
        return [self.value(int(kind), key, depth + 1) for _ in range(count)]

    def texts(self, count: int, key: str) -> list[Value]:
        """Many short texts: a vocabulary has hundreds of thousands."""
        found: list[Value] = []
        mapped, at, limit, size = self.mapped, self.at, self.limit, struct.Struct("<Q").unpack_from
        here = self.here
        for _ in range(count):
            end = at + 8
            if end <= here:
                end += size(mapped, at)[0]
            if end > limit:
                raise _damaged(self.path, f"ends within {key}, at {at:,}")
            if end > here:
                raise _ShortError(end)
            if self.with_texts:
                found.append(mapped[at + 8 : end].decode("utf-8", "replace"))
            at = end
        self.at = at
        return found

    def tensor(self) -> tuple[str, BlockType, tuple[int, ...], int]:
        name = self.name("a tensor's name")
        (num_dimensions,) = self.numbers("I", 1, name)
        if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
            raise _damaged(self.path, f"gives tensor {name} {num_dimensions} dimensions")
        sizes = [int(size) for size in self.numbers("Q", int(num_dimensions), name)]
        (kind,) = self.numbers("I", 1, name)
        offset = self.size(name)
        block = TYPES.get(int(kind))
        if block is None:
            raise WeightsError(
                f"{self.path.name}: tensor {name} has type {_UNREAD.get(int(kind), int(kind))}; "
                f"permitted: {', '.join(sorted(t.name for t in TYPES.values()))}",
                hint="use another quantization of the model",
            )
        if any(not 0 < size < 1 << 40 for size in sizes) or sizes[0] % block.elements:
            raise _damaged(
                self.path, f"gives tensor {name} of {block.name} the sizes {sizes}; rows are "
                f"multiples of {block.elements}"
            )  # fmt: skip
        return name, block, tuple(reversed(sizes)), offset

    def placed(
        self, claims: list[tuple[str, BlockType, tuple[int, ...], int]], alignment: int
    ) -> dict[str, TensorEntry]:
        """Where the tensors lie: within the file, aligned, none over another."""
        data = -(-self.at // alignment) * alignment
        found: dict[str, TensorEntry] = {}
        last = data
        for name, block, shape, offset in sorted(claims, key=lambda claim: claim[3]):
            if name in found:
                raise _damaged(self.path, f"has the tensor {name} twice")
            begin = data + offset
            end = begin + math.prod(shape) // block.elements * block.num_bytes
            if offset % alignment or begin < last:
                raise _damaged(self.path, f"has tensor {name} at {offset:,}, over another or askew")
            if end > self.num_bytes:
                raise _damaged(
                    self.path,
                    f"is truncated: tensor {name} ends at byte {end:,}, the file has "
                    f"{self.num_bytes:,}",
                )
            last = end
            found[name] = TensorEntry(self.path, name, block.name, shape, begin, end)
        return found


def _alignment(path: Path, metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment", 32)
    if not isinstance(value, int) or not 1 <= value <= 1 << 20 or value & value - 1:
        raise _damaged(path, f"has general.alignment {value!r}, no power of two")
    return value


def _damaged(path: Path, what: str) -> WeightsError:
    return WeightsError(
        f"{path.name}: {what}",
        hint="the file is damaged, or its download was cut short: fetch it again",
    )
