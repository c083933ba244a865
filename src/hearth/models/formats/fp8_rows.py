"""Rows of FP8 (e4m3) with scales: as they are, or as floating point where no kernel has them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from hearth.core.errors import WeightsError
from hearth.core.spec import CodesForm
from hearth.kernels.e4m3 import NO_NUMBER, e4m3_values
from hearth.models.formats.fp8 import SCALES, group_size_of, has_scale
from hearth.models.formats.matrix import (
    FLOATS,
    AnyRows,
    Maps,
    StoredMatrix,
    StoredRows,
    bytes_of,
    find,
    floats_of,
    host_tensor,
)
from hearth.models.safetensors_file import Checkpoint


@dataclass(frozen=True, slots=True)
class Fp8Matrix(StoredMatrix):
    """`others`: the scales, of whatever rank the file gives them."""

    def read(self, first: int, count: int, maps: Maps) -> AnyRows:
        """See `StoredMatrix.read`. Raises WeightsError for codes that are no number."""
        shape = blocks_of(self.form, self.rows, self.cols)
        scales = floats_of(self.others[0], maps).reshape(shape)
        rows, cols = (size or most for size, most in zip(self.form.block, (self.rows, self.cols)))
        codes = bytes_of(self.main, maps)[first : first + count].copy()
        if (codes & 127 == NO_NUMBER).any():
            raise WeightsError(
                f"{self.main.path.name}: the matrix {self.tensor} has values that are not finite",
                hint="the file is damaged, or was quantized from weights that were",
            )
        mine = scales[np.arange(first, first + count) // rows]
        if not self.form.converted:
            groups = np.arange(0, self.cols, group_size_of(self.form, self.cols)) // cols
            return StoredRows(codes, mine[:, groups], None, 8, is_float=True)
        return host_tensor(e4m3_values()[codes] * np.repeat(mine, cols, axis=1)[:, : self.cols])


def is_there(tensor: str, names: Collection[str]) -> bool:
    """See `forms.Rows`."""
    return tensor in names and has_scale(tensor, names)


def matrix(
    form: CodesForm, tensor: str, checkpoint: Checkpoint, shape: tuple[int, int]
) -> Fp8Matrix:
    """See `forms.Rows`."""
    rows, cols = shape
    codes = find(checkpoint, tensor, ("F8_E4M3",), shape)
    name = next(tensor + s for s in SCALES if tensor + s in checkpoint.tensors)
    entry = checkpoint.tensors[name]
    blocks = blocks_of(form, rows, cols)
    permitted: set[tuple[int, ...]] = {blocks}
    if blocks[1] == 1:
        permitted |= {(blocks[0],)}
    if blocks == (1, 1):
        permitted |= {()}
    if entry.shape not in permitted:
        raise WeightsError(
            f"{entry.path.name}: tensor {name}: shape is {list(entry.shape)}; config.json makes it "
            f"{list(blocks)}"
        )
    scales = find(checkpoint, name, FLOATS, entry.shape)
    return Fp8Matrix(form, tensor, rows, cols, codes, (scales,))


def blocks_of(form: CodesForm, rows: int, cols: int) -> tuple[int, int]:
    """How many blocks there are along rows and columns."""
    high, wide = form.block
    return -(-rows // high) if high else 1, -(-cols // wide) if wide else 1
