"""What the names of GGUF files say: the quantization, the part of a split, an encoder.

Names are llama.cpp's by habit only (gguf-py's naming convention): MODEL-Q4_K_M.gguf,
MODEL-Q8_0-00001-of-00003.gguf, mmproj-MODEL-f16.gguf. What is in a file, its header says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from urllib.parse import quote

from hearth.hub.listing import RemoteFile

SUFFIX = ".gguf"
PROJECTOR = "mmproj"  # how readers recognize an encoder's file in a directory
_QUANTIZATION = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:IQ\d|Q\d|TQ\d|MXFP4|FP4|BF16|FP16|FP32|F16|F32)(?:_[A-Z0-9]+)*)"
    r"(?=$|[-.])",
    re.IGNORECASE,
)
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})$")
_STATISTICS = "imatrix"  # of what the quantization was made by; models made so may say it, too
_PROJECTOR_ORDER = ("F16", "FP16", "BF16", "F32", "FP32", "Q8_0")
_MAX_LABEL_BYTES = 120

# Bits of a weight in the file and in memory, by the type that most of its matrices have; files mix
# types, so both are about. The first: llama.cpp's table of sizes (tools/quantize). The second:
# codes of docs/quantization.md, 8.5 bits where there is no kernel for the type.
_BITS = {
    "Q4_0": (4.6, 5.2), "Q4_1": (5.1, 8.5), "Q5_0": (5.6, 8.5), "Q5_1": (6.0, 8.5),
    "Q4_K_S": (4.6, 8.5), "Q4_K_M": (4.9, 8.5), "Q4_K_L": (5.0, 8.5), "Q4_K_XL": (4.9, 8.5),
    "Q4_K": (4.9, 8.5),
    "Q5_K_S": (5.6, 8.5), "Q5_K_M": (5.7, 8.5), "Q5_K_L": (5.8, 8.5), "Q5_K_XL": (5.7, 8.5),
    "Q5_K": (5.7, 8.5),
    "Q6_K": (6.6, 8.5), "Q6_K_L": (6.8, 8.5), "Q6_K_XL": (7.0, 8.5),
    "Q8_0": (8.5, 9.0), "Q8_K_XL": (10.0, 10.5),
    "F16": (16.0, 16.0), "FP16": (16.0, 16.0), "BF16": (16.0, 16.0),
    "F32": (32.0, 16.0), "FP32": (32.0, 16.0),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A language model among a repository's files, all of its parts in order."""

    files: tuple[RemoteFile, ...]

    @property
    def stem(self) -> str:
        """The path without suffix and number of the part."""
        return stem_of(self.files[0].path)

    @property
    def num_bytes(self) -> int:
        """All parts together."""
        return sum(file.num_bytes for file in self.files)

    @property
    def label(self) -> str:
        """Names its directory in the store: unlike that of every other file of a repository."""
        label = self.stem.replace("/", "__")
        encoded = label.encode()
        if len(quote(label, safe="")) <= _MAX_LABEL_BYTES:  # so it stands in names of refs
            return label
        digest = blake2b(encoded, digest_size=8).hexdigest()
        return f"{encoded[: _MAX_LABEL_BYTES // 3].decode('utf-8', 'ignore')}-{digest}"

    @property
    def memory_bytes(self) -> int | None:
        """About what its weights take when served; None: a form that is not read, or unknown."""
        bits = _BITS.get(quantization_of(self.stem).removeprefix("UD-"))
        return None if bits is None else int(self.num_bytes * bits[1] / bits[0])


def stem_of(path: str) -> str:
    """A path without suffix and number of the part."""
    return _SPLIT.sub("", path.removesuffix(SUFFIX))


def quantization_of(path: str) -> str:
    """As a file's name has it, in upper case: Q4_K_M, UD-Q4_K_XL, F16; empty: it has none."""
    found = _QUANTIZATION.findall(stem_of(path).rpartition("/")[2])
    return str(found[-1]).upper() if found else ""


def matches(tag: str, path: str) -> bool:
    """Whether a tag means this file: its quantization, its name or path, with or without suffix."""
    wanted = tag.casefold()
    stem = stem_of(path)
    name = stem.rpartition("/")[2]
    names = (quantization_of(path), stem, name, path, path.rpartition("/")[2], stem + SUFFIX)
    return wanted in {text.casefold() for text in names if text}


def is_projector(path: str) -> bool:
    """Whether a file holds the encoder of a model that sees."""
    return path.endswith(SUFFIX) and PROJECTOR in path.rpartition("/")[2].lower()


def models_of(files: Sequence[RemoteFile]) -> list[GgufModel]:
    """The language models among files; parts of one are together, in their order.

    Of a model that is there whole and in parts the whole file is taken.
    """
    found: dict[tuple[str, int], list[RemoteFile]] = {}
    for file in sorted(files, key=lambda file: file.path):
        if file.path.endswith(SUFFIX) and not is_projector(file.path) and not _is_data(file.path):
            found.setdefault((stem_of(file.path), num_parts(file.path)), []).append(file)
    whole = {stem for stem, count in found if count == 1}
    return [
        GgufModel(tuple(parts))
        for (stem, count), parts in found.items()
        if count == 1 or stem not in whole
    ]


def _is_data(path: str) -> bool:
    return _STATISTICS in path.rpartition("/")[2].lower() and not quantization_of(path)


def projector_of(files: Sequence[RemoteFile]) -> RemoteFile | None:
    """The encoder's file to take of those there are: half precision before others."""
    found = [file for file in files if is_projector(file.path)]
    return min(found, key=_projector_rank, default=None)


def _projector_rank(file: RemoteFile) -> tuple[int, str]:
    quantization = quantization_of(file.path)
    order = _PROJECTOR_ORDER
    return order.index(quantization) if quantization in order else len(order), file.path


def num_parts(path: str) -> int:
    """Of how many parts a file's name says that it is one; 1: it is no part."""
    match = _SPLIT.search(path.removesuffix(SUFFIX))
    return 1 if match is None else int(match[2])
