"""Rows of AWQ's codes.

`qweight` int32 [inputs, outputs / 8]: nibble i of a word is the code of output
8 · word + (0, 2, 4, 6, 1, 3, 5, 7)[i]; `qzeros` [groups, outputs / 8] in the same order; `scales`
[groups, outputs]. A weight is scale · (code − zero point).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import WeightsError
from hearth.core.spec import CodesForm
from hearth.kernels.packing import HostTensor
from hearth.models.formats.columns import has_columns
from hearth.models.formats.matrix import (
    FLOATS,
    Maps,
    StoredMatrix,
    StoredRows,
    array_of,
    find,
    floats_of,
    host_tensor,
    nibbles,
)
from hearth.models.safetensors_file import Checkpoint

_PER_WORD = 8
# The nibble that holds output 0, 1, … of a word.
_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True, slots=True)
class AwqMatrix(StoredMatrix):
    """`others`: scales and zero points."""

    is_scattered: ClassVar[bool] = True

    def read(self, first: int, count: int, maps: Maps) -> StoredRows | HostTensor:
        """See `StoredMatrix.read`."""
        words = slice(first // _PER_WORD, -(-(first + count) // _PER_WORD))
        skipped = first - words.start * _PER_WORD
        part = slice(skipped, skipped + count)
        codes = _outputs(array_of(self.main, "<u4", maps)[:, words])[part]
        zeros = _outputs(array_of(self.others[1], "<u4", maps)[:, words])[part]
        scales = floats_of(self.others[0], maps)[:, first : first + count].T
        if not self.form.converted:
            return StoredRows(codes, scales, zeros, self.form.bits)
        groups = np.arange(self.cols) // self.form.group_size
        return host_tensor((codes.astype(np.float32) - zeros[:, groups]) * scales[:, groups])


def is_there(tensor: str, names: Collection[str]) -> bool:
    """See `forms.Rows`."""
    return has_columns(tensor, names)


def matrix(
    form: CodesForm, tensor: str, checkpoint: Checkpoint, shape: tuple[int, int]
) -> AwqMatrix:
    """See `forms.Rows`."""
    rows, cols = shape
    module = tensor.removesuffix(".weight")
    if rows % _PER_WORD:
        raise WeightsError(
            f"{tensor} has {rows} outputs; AWQ packs multiples of {_PER_WORD}",
            hint="config.json and the checkpoint do not belong together",
        )
    groups = -(-cols // form.group_size) if form.group_size else 1
    words = rows // _PER_WORD
    codes = find(checkpoint, f"{module}.qweight", ("I32",), (cols, words))
    scales = find(checkpoint, f"{module}.scales", FLOATS, (groups, rows))
    zeros = find(checkpoint, f"{module}.qzeros", ("I32",), (groups, words))
    return AwqMatrix(form, tensor, rows, cols, codes, (scales, zeros))


def _outputs(words: NDArray[np.generic]) -> NDArray[np.uint8]:
    """[n, words] to [8 · words, n]: outputs in their order, inputs behind each other."""
    mixed = nibbles(np.ascontiguousarray(words).view(np.uint8))
    ordered = mixed.reshape(len(mixed), -1, _PER_WORD)[:, :, _NIBBLES]
    return np.ascontiguousarray(ordered.reshape(len(mixed), -1).T)
