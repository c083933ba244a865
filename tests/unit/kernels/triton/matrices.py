"""Weights of every form for tests of linear layers, and what they stand for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hearth.kernels.codes import Codes
from hearth.kernels.e4m3 import to_e4m3
from hearth.kernels.triton.layout import CodedMatrix, Matrix, pack_words, unpack_words


@dataclass(frozen=True, slots=True)
class Form:
    bits: int
    zeros: bool = False
    is_float: bool = False


FORMS = {
    "int4": Form(4),
    "int4 zeros": Form(4, zeros=True),
    "int8": Form(8),
    "int8 zeros": Form(8, zeros=True),
    "fp8": Form(8, is_float=True),
}


def matrix(form: Form, group_size: int, rows: int, cols: int, seed: int = 0) -> CodedMatrix:
    """Random codes, every one of them possible; FP8 with subnormals and the largest number."""
    rng = np.random.default_rng(seed + rows * cols)
    codes = rng.integers(0, 1 << form.bits, (rows, cols), dtype=np.uint8)
    if form.is_float:
        codes = to_e4m3(rng.normal(0, 2, (rows, cols)).astype(np.float32))
        codes.reshape(-1)[:3] = (0x01, 0x87, 0x7E)[: codes.size]
    groups = -(-cols // group_size)
    scales = torch.from_numpy(rng.uniform(0.01, 0.1, (groups, rows)).astype(np.float32))
    zeros = rng.integers(0, 1 << form.bits, (groups, rows), dtype=np.uint8)
    stored = torch.from_numpy(codes)
    return CodedMatrix(
        pack_words(stored) if form.bits == 4 else stored,
        scales,
        torch.from_numpy(zeros) if form.zeros else None,
        form.bits,
        group_size,
        cols,
        form.is_float,
    )


def exact(weight: Matrix, rows: int) -> Tensor:
    """What a weight stands for, float64 [rows, cols], by `hearth.kernels.codes`."""
    if not isinstance(weight, CodedMatrix):
        return weight.data[:rows].double()
    codes = weight.codes if weight.bits == 8 else unpack_words(weight.codes, weight.cols)
    scales = weight.scales.float().T.contiguous().numpy()
    zeros = np.full(scales.shape, 1 << weight.bits - 1, np.uint8)
    if weight.zeros is not None:
        zeros = weight.zeros.T.contiguous().numpy()
    plain = Codes(codes.numpy(), np.ones_like(scales), zeros, weight.is_float)
    numbers = torch.from_numpy(plain.values(weight.group_size)).double()
    factors = torch.from_numpy(scales).double().repeat_interleave(weight.group_size, dim=1)
    return numbers * factors[:, : weight.cols]
