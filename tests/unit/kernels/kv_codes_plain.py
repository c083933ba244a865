"""Keys and values as codes, written down once more: plain numpy, value by value where it is clear.

The definition that kernels and the torch reference are compared with.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray
from tests.unit.kernels.programs import Heads, to_bfloat16

Floats = NDArray[np.float32]


def e4m3_numbers() -> Floats:
    """All finite numbers of e4m3 that are not negative, ascending; the code is the index."""
    found = [
        (mantissa / 8) * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        for exponent, mantissa in product(range(16), range(8))
    ]
    return np.array(found[:-1], np.float32)  # the last is NaN


def nearest_e4m3(x: Floats) -> Floats:
    """The nearest one, the even code of two; |x| ≤ 448."""
    numbers = e4m3_numbers()
    size = np.abs(x).astype(np.float64)
    above = np.searchsorted(numbers, size).clip(1, len(numbers) - 1)
    below = above - 1
    up, down = numbers[above] - size, size - numbers[below]
    takes_upper = (up < down) | ((up == down) & (above % 2 == 0))
    found: Floats = np.where(takes_upper, numbers[above], numbers[below]).astype(np.float32)
    return np.copysign(found, x)


def hadamard(size: int) -> NDArray[np.float64]:
    """Sylvester's matrix, divided by √size: entry (i, j) has the sign of the parity of i & j."""
    signs = [[(-1.0) ** (i & j).bit_count() for j in range(size)] for i in range(size)]
    matrix: NDArray[np.float64] = np.array(signs) / np.sqrt(size)
    return matrix


def rotated(x: Floats) -> Floats:
    """Each n neighbours of the last axis, n the largest power of two that divides its length."""
    width = x.shape[-1]
    size = width & -width
    blocks = x.reshape(*x.shape[:-1], width // size, size).astype(np.float64) @ hadamard(size)
    return blocks.reshape(x.shape).astype(np.float32)


def coded(x: Floats, dtype: str, columns: int) -> tuple[Floats, Floats]:
    """Codes and, of each, its scale, [..., width] both; `columns` neighbours share one."""
    codes, scales = np.zeros_like(x), np.zeros_like(x)
    of_largest = np.float32({"int8": 127, "int4": -8, "fp8": 448}[dtype])
    for first in range(0, x.shape[-1], columns):
        group = x[..., first : first + columns]
        places = np.abs(group).argmax(axis=-1, keepdims=True)
        most = np.take_along_axis(group, places, axis=-1)
        scale = to_bfloat16((most if dtype == "int4" else np.abs(most)) / of_largest)
        scaled = group * np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=most != 0)
        if dtype == "fp8":
            found = nearest_e4m3(np.clip(scaled, -448, 448))
        else:
            low, high = (-8, 7) if dtype == "int4" else (-127, 127)
            found = np.clip(np.rint(scaled), low, high)
        codes[..., first : first + columns] = found
        scales[..., first : first + columns] = scale
    return codes, scales


def coded_attention(
    qkv: Floats, heads: Heads, dtype: str, *, rotates_keys: bool = True
) -> NDArray[np.float64]:
    """Attention over keys and values as they are stored; [tokens, width] → [tokens, q width].

    With integer codes nothing else is rounded: fixed point is to be nearly exact.
    """
    rounded = heads.rounded and dtype == "fp8"
    num, dim = len(qkv), heads.head_dim
    rows = qkv.reshape(num, -1, dim)
    q = rows[:, : heads.num_heads]
    k = rows[:, heads.num_heads : heads.num_heads + heads.num_kv_heads]
    v = rows[:, heads.num_heads + heads.num_kv_heads :]
    if dtype == "int4" and rotates_keys:
        q, k = rotated(q), rotated(k)
    q = to_bfloat16(q) if rounded else q
    k_codes, k_scales = coded(k, dtype, dim)
    v_codes, v_scales = coded(v, dtype, 64 if dtype == "int4" else dim)
    k_values = k_codes.astype(np.float64) * k_scales
    group = heads.num_heads // heads.num_kv_heads
    distance = np.arange(num)[:, None] - np.arange(num)[None, :]
    hidden = (distance < 0) | ((distance >= heads.window) if heads.window else False)
    out = np.empty((num, heads.num_heads, dim))
    for h in range(heads.num_heads):
        scores = q[:, h].astype(np.float64) @ k_values[:, h // group].T * dim**-0.5
        if heads.soft_cap:
            scores = np.tanh(scores / heads.soft_cap) * heads.soft_cap
        scores[hidden] = -np.inf
        powers = scores * np.log2(np.e)
        weights = 2 ** (powers - np.round(powers.max(axis=1, keepdims=True)))
        for first in range(0, dim, 64):  # columns that have one scale
            scaled = weights * v_scales[None, :, h // group, first]
            scaled = to_bfloat16(scaled).astype(np.float64) if rounded else scaled
            out[:, h, first : first + 64] = scaled @ v_codes[:, h // group, first : first + 64]
        out[:, h] /= weights.sum(axis=1, keepdims=True)
    return out.reshape(num, -1)
