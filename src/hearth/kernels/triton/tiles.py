"""What linear layers share: the choice of tiles, and how sums of segments become the output.

A program computes a tile of BLOCK_R outputs for BLOCK_T tokens, the weight being the left operand
of the matrix instruction and tokens its columns: the instruction that a card has for tiles of this
height (wgmma on sm_90) is the same for 1 token and for thousands, and decoded weights may stay in
registers. Outputs are sums over columns in order within a segment (`layout.segment_columns`), and
of segments in ascending order, from zero. "Apart", programs compute a segment each and leave it in
scratch, [segment, token, output] float32, for `add_segments`; "joined", a program runs through all
of them. Both add the same numbers in the same order: which one is used is a question of speed.
"""

# Kernels have types of their own, and as many arguments as tensors and strides need.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: PLR0913, PLR0917
from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from hearth.core.errors import KernelError
from hearth.core.units import ceil_div
from hearth.kernels.triton.layout import k_segments

FLOAT_TYPES = (torch.bfloat16, torch.float16, torch.float32)
_MULTIPROCESSORS = 132  # of a large card; a smaller one has work enough all the same
_FEW_TOKENS = 64
_MANY_ROWS = 128
_REDUCED_ROWS = 512
# KiB of shared memory that a program may take (CUDA C++ programming guide, compute capabilities).
_SHARED_KIB = {(7, 5): 64, (8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227}
_SMALLER_KIB = 99  # sm_86, sm_89, sm_120
_RESERVED_SHARED = 1 << 10  # of every program, by CUDA


@dataclass(frozen=True, slots=True)
class WeightTile:
    """What a program reads of the weight and of tokens at a time: so many columns.

    `bits`: of an element of the weight; `float_bytes`: of an element of a token. `many_tokens`: of
    a tile for long steps, as many as registers hold.
    """

    columns: int
    bits: int
    float_bytes: int
    many_tokens: int


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a linear layer is launched: its tile, and whether segments are apart."""

    block_rows: int
    block_tokens: int
    apart: bool
    num_warps: int
    num_stages: int


def choose_tiling(
    tokens: int, rows: int, cols: int, tile: WeightTile, *, may_split: bool, shared_bytes: int
) -> Tiling:
    """The tiles of a step of `tokens` > 0; every choice gives the same bits.

    `shared_bytes`: shared memory that one program may take. Few tokens are a matter of reading the
    weight: two programs a multiprocessor, as many loads under way as fit. Many are a matter of
    multiplying: large tiles.
    """
    segments = k_segments(rows, cols)
    if tokens <= _FEW_TOKENS:
        block = 16 if tokens <= 16 else 32 if tokens <= 32 else 64
        apart = may_split and segments > 1
        if block == 16:
            height, warps = 64, 4
        else:  # what is read of tokens counts as well: share it among more rows
            height, warps = 128, 8
    else:
        block, height, warps = tile.many_tokens, _MANY_ROWS, 8
        programs = ceil_div(tokens, block) * ceil_div(rows, height)
        apart = may_split and segments > 1 and 2 * programs <= _MULTIPROCESSORS
    stage = tile.columns * (height * tile.bits // 8 + block * tile.float_bytes)
    room = shared_bytes // 2 - _RESERVED_SHARED if tokens <= _FEW_TOKENS else shared_bytes
    return Tiling(height, block, apart, warps, min(max(room // stage, 2), 5))


def scratch_floats(max_tokens: int, rows: int, cols: int) -> int:
    """float32 that `linear` wants for steps of up to `max_tokens`; 0: none.

    Without scratch it runs all the same, with the same results, and slower for few tokens.
    """
    segments = k_segments(rows, cols)
    if segments == 1:
        return 0
    tiles = _MULTIPROCESSORS // 2 // ceil_div(rows, _MANY_ROWS)
    most = max(_FEW_TOKENS, tiles * 128)  # the most tokens of a tile
    return segments * min(max_tokens, most) * rows


@cache
def shared_bytes(device: torch.device) -> int:
    """Shared memory that one program may take on a device."""
    return shared_of(torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0))


def shared_of(capability: tuple[int, int]) -> int:
    """The same of a compute capability."""
    return _SHARED_KIB.get(capability, _SMALLER_KIB) << 10


@triton.jit
def place(rows, num_tokens, BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr):
    """First output and first token of a program: eight tiles of outputs pass over all tokens.

    So that what programs at work at the same time read fits into the L2 cache.
    """
    tiles_r, tiles_t = tl.cdiv(rows, BLOCK_R), tl.cdiv(num_tokens, BLOCK_T)
    index = tl.program_id(0)
    first = index // (8 * tiles_t) * 8
    height = tl.minimum(tiles_r - first, 8)
    inner = index % (8 * tiles_t)
    return (first + inner % height) * BLOCK_R, inner // height * BLOCK_T


@triton.jit
def finish(
    total, bias, out, scratch, row, token, rows, num_tokens, out_stride,
    APART: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Leaves the sum of a segment in scratch, or the output with its bias where it belongs."""
    inside = (row < rows)[:, None] & (token < num_tokens)[None, :]
    if APART:
        line = (tl.program_id(1) * num_tokens + token).to(tl.int64) * rows
        tl.store(scratch + line[None, :] + row[:, None], total, mask=inside)
    else:
        if HAS_BIAS:
            total += tl.load(bias + row, mask=row < rows, other=0.0)[:, None]
        line = token.to(tl.int64) * out_stride
        result = total.to(out.dtype.element_ty)
        tl.store(out + line[None, :] + row[:, None], result, mask=inside)


@triton.jit
def _add_kernel(
    scratch, bias, out, rows, num_tokens, segments, out_stride,
    HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for segment in range(segments):
        line = scratch + (segment * num_tokens + token) * rows
        total += tl.load(line + row, mask=row < rows, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + row, mask=row < rows, other=0.0)
    result = total.to(out.dtype.element_ty)
    tl.store(out + token * out_stride + row, result, mask=row < rows)


def add_segments(scratch: Tensor, bias: Tensor | None, out: Tensor, segments: int) -> None:
    """out[t] = the segments' sums of scratch [segments, T, N], in order (+ bias)."""
    tokens, rows = out.shape
    grid = (triton.cdiv(rows, _REDUCED_ROWS), tokens)
    _add_kernel[grid](
        scratch, scratch if bias is None else bias, out, rows, tokens, segments, out.stride(0),
        HAS_BIAS=bias is not None, BLOCK=_REDUCED_ROWS,
    )  # fmt: skip


def check_scratch(scratch: Tensor, tokens: int, rows: int, cols: int) -> None:
    """Raises KernelError where segments would not fit."""
    needed = k_segments(rows, cols) * tokens * rows
    if scratch.dtype != torch.float32 or scratch.numel() < needed:
        raise KernelError(
            f"scratch has {scratch.numel()} elements of {scratch.dtype}; {tokens} tokens of a "
            f"{rows} × {cols} weight need {needed} of float32",
            hint="allocate tiles.scratch_floats",
        )
