"""Rows of GPTQ's codes.

`qweight` int32 [inputs · bits / 32, outputs], an input's code at bits (i mod (32 / bits)) · bits;
`qzeros` int32 [groups, outputs · bits / 32], packed alike along the outputs; `scales` [groups,
outputs]; `g_idx` int32 [inputs], the group of each. A weight is scale · (code − zero point).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import WeightsError
from hearth.core.spec import CodesForm
from hearth.kernels.packing import HostTensor
from hearth.models.formats.columns import has_columns, modules_of
from hearth.models.formats.matrix import (
    FLOATS,
    Maps,
    StoredMatrix,
    StoredRows,
    array_of,
    column_groups,
    find,
    floats_of,
    host_tensor,
    nibbles,
)
from hearth.models.safetensors_file import Checkpoint, TensorEntry

_WORD_BITS = 32
# Matrices whose zero points are looked at; and of each, words of codes for each output.
_SAMPLES = 8
_SAMPLE_ROWS = 32


@dataclass(frozen=True, slots=True)
class GptqMatrix(StoredMatrix):
    """`others`: scales, zero points, and the groups of the columns where there are any."""

    is_scattered: ClassVar[bool] = True

    def read(self, first: int, count: int, maps: Maps) -> StoredRows | HostTensor:
        """See `StoredMatrix.read`."""
        part = slice(first, first + count)
        bits = self.form.bits
        codes = _unpacked(array_of(self.main, "<u4", maps)[:, part].T, bits)[:, : self.cols]
        scales = floats_of(self.others[0], maps)[:, part].T
        zeros = _zeros(self.others[1], self.form, maps)[part]
        groups = column_groups(self.others[-1], self.form, scales.shape[1], maps)
        if self.form.symmetric and (zeros != 1 << bits - 1).any():
            raise WeightsError(
                f"{self.main.path.name}: the zero points of {self.tensor} differ, but config.json "
                "has sym: true",
                hint="set sym to false in quantization_config if the checkpoint is asymmetric",
            )
        if groups is None and not self.form.converted:
            return StoredRows(codes, scales, None if self.form.symmetric else zeros, bits)
        if groups is None:
            groups = np.arange(self.cols) // (self.form.group_size or self.cols)
        distance = codes.astype(np.float32) - zeros[:, groups]
        return host_tensor(distance * scales[:, groups])


def is_there(tensor: str, names: Collection[str]) -> bool:
    """See `forms.Rows`."""
    return has_columns(tensor, names)


def matrix(
    form: CodesForm, tensor: str, checkpoint: Checkpoint, shape: tuple[int, int]
) -> GptqMatrix:
    """See `forms.Rows`."""
    rows, cols = shape
    module, per_word = tensor.removesuffix(".weight"), _WORD_BITS // form.bits
    groups = -(-cols // form.group_size) if form.group_size else 1
    codes = find(checkpoint, f"{module}.qweight", ("I32",), (-(-cols // per_word), rows))
    scales = find(checkpoint, f"{module}.scales", FLOATS, (groups, rows))
    zeros = find(checkpoint, f"{module}.qzeros", ("I32",), (groups, -(-rows // per_word)))
    others = [scales, zeros]
    if form.is_ordered or f"{module}.g_idx" in checkpoint.tensors:
        others.append(find(checkpoint, f"{module}.g_idx", ("I32", "I64"), (cols,)))
    return GptqMatrix(form, tensor, rows, cols, codes, tuple(others))


def find_version(tensors: Mapping[str, TensorEntry], form: CodesForm) -> int:
    """1 or 2, from what a few matrices hold; 0 where it does not tell.

    Symmetric codes have one zero point, the middle: stored as itself by version 2, less one by
    version 1. Otherwise weights are about 0 on average, so that codes are on average what the zero
    points are: one more than what version 1 stores.
    """
    modules = modules_of(tensors)
    pairs = [
        (tensors[f"{module}.qweight"], tensors[f"{module}.qzeros"])
        for module in modules[:: -(-len(modules) // _SAMPLES) or 1]
        if f"{module}.qzeros" in tensors
    ]
    pairs = [pair for pair in pairs if all(len(entry.shape) == 2 for entry in pair)]
    zeros = [_unpacked(_from_file(stored), form.bits) for _, stored in pairs]
    if not pairs:
        return 0
    middle = 1 << form.bits - 1
    if form.symmetric:
        found = {int(code) for stored in zeros for code in (stored.min(), stored.max())}
        return 1 if found == {middle - 1} else 2 if found == {middle} else 0
    codes = [_unpacked(_from_file(words, _SAMPLE_ROWS), form.bits) for words, _ in pairs]
    above = float(np.mean([c.mean() - z.mean() for c, z in zip(codes, zeros)]))
    return 0 if abs(above - 0.5) < 0.25 else (1 if above > 0.5 else 2)


def find_ordered(tensors: Mapping[str, TensorEntry], group_size: int) -> frozenset[str]:
    """Modules whose groups are not made of neighbouring columns."""
    found = set()
    for module in modules_of(tensors):
        entry = tensors.get(f"{module}.g_idx")
        if entry is None or entry.dtype not in ("I32", "I64"):
            continue
        groups = _from_file(entry)
        if not np.array_equal(groups, np.arange(len(groups)) // group_size):
            found.add(module)
    return frozenset(found)


def _from_file(entry: TensorEntry, most_rows: int = 1 << 30) -> NDArray[np.generic]:
    """The first rows of a tensor by an ordinary read, before anything is mapped."""
    dtype = np.dtype("<i8" if entry.dtype == "I64" else "<u4")
    shape = (min(most_rows, entry.shape[0]), *entry.shape[1:])
    try:
        flat = np.fromfile(entry.path, dtype, math.prod(shape), offset=entry.begin)
    except OSError as error:
        raise WeightsError(f"{entry.path}: cannot be read: {error.strerror}") from error
    return flat.reshape(shape)


def _unpacked(words: NDArray[np.generic], bits: int) -> NDArray[np.uint8]:
    """[n, words] to [n, words · 32 / bits], the low bits first."""
    raw = np.ascontiguousarray(words).view(np.uint8)
    return raw if bits == 8 else nibbles(raw)


def _zeros(entry: TensorEntry, form: CodesForm, maps: Maps) -> NDArray[np.uint8]:
    """True zero points, [outputs, groups]; what version 1 stores as −1 is 0."""
    stored = _unpacked(array_of(entry, "<u4", maps), form.bits).T
    if form.version == 1:
        stored = stored + np.uint8(1) & np.uint8((1 << form.bits) - 1)
    return stored
