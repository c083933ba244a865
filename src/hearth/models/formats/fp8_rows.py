"""Rows of FP8 (e4m3fn: 4 bits of exponent, bias 7, no infinity) with scales, as floating point."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import WeightsError
from hearth.core.spec import CodesForm
from hearth.kernels.packing import HostTensor
from hearth.models.formats.fp8 import SCALES, has_scale
from hearth.models.formats.matrix import (
    FLOATS,
    Maps,
    StoredMatrix,
    bytes_of,
    find,
    floats_of,
    host_tensor,
)
from hearth.models.safetensors_file import Checkpoint


@dataclass(frozen=True, slots=True)
class Fp8Matrix(StoredMatrix):
    """`others`: the scales, of whatever rank the file gives them."""

    def read(self, first: int, count: int, maps: Maps) -> HostTensor:
        """See `StoredMatrix.read`."""
        shape = blocks_of(self.form, self.rows, self.cols)
        scales = floats_of(self.others[0], maps).reshape(shape)
        rows, cols = (size or most for size, most in zip(self.form.block, (self.rows, self.cols)))
        codes = bytes_of(self.main, maps)[first : first + count]
        values = e4m3_values()[codes]
        mine = scales[np.arange(first, first + count) // rows]
        return host_tensor(values * np.repeat(mine, cols, axis=1)[:, : self.cols])


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


@cache
def e4m3_values() -> NDArray[np.float32]:
    """What each byte stands for; the two that stand for no number are NaN."""
    byte = np.arange(256)
    exponent, fraction = byte >> 3 & 15, byte & 7
    normal = np.ldexp(1 + fraction / 8, exponent - 7)
    values = np.where(exponent == 0, np.ldexp(fraction / 8, -6), normal)
    values[byte & 127 == 127] = np.nan
    return np.where(byte >= 128, -values, values).astype(np.float32)
