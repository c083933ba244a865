"""What linear layers share: the choice of tiles, and how sums of segments become the output.

A program computes a tile of BLOCK_R outputs for BLOCK_T tokens, the weight being the left operand
of the matrix instruction and tokens its columns: the instruction that a card has for tiles of this
height (wgmma on sm_90) is the same for 1 token and for thousands, and decoded weights may stay in
registers. Outputs are sums over columns in order within a segment (`layout.segment_columns`), and
of segments in ascending order, from zero. "Apart", programs compute a segment each and leave it in
scratch, [segment, token, output] float32, where the last program of a tile adds them, or, without
counters, a second launch, `add_segments`; "joined", a program runs through all of them. All add the
same numbers in the same order: which one is used is a question of speed.
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
from hearth.core.spec import Activation
from hearth.core.units import ceil_div
from hearth.kernels.triton.layout import k_segments
from hearth.kernels.triton.rows import KINDS, activated

FLOAT_TYPES = (torch.bfloat16, torch.float16, torch.float32)
_MULTIPROCESSORS = 132  # of a large card; a smaller one has work enough all the same
_FEW_TOKENS = 64
_MANY_ROWS = 128
_REDUCED_ROWS = 512
# KiB of shared memory that a program may take (CUDA C++ programming guide, compute capabilities).
_SHARED_KIB = {(7, 5): 64, (8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227}
_LARGEST_SHARED = 227 << 10
_SMALLER_KIB = 99  # sm_86, sm_89, sm_120
NUM_COUNTERS = 512  # int32 zeros: segments are apart only where tiles are fewer
_AMPERE = (8, 0)
_RESERVED_SHARED = 1 << 10  # of every program, by CUDA


@dataclass(frozen=True, slots=True)
class WeightTile:
    """What a program reads of the weight and of tokens at a time: so many columns.

    `bits`: of an element of the weight; `float_bytes`: of an element of a token. `many_tokens`: of
    a tile for long steps, as many as registers hold; `whole_tokens`: on sm_90, where a sum is not
    cut, and needs no registers for its segments.
    """

    columns: int
    bits: int
    float_bytes: int
    many_tokens: int
    whole_tokens: int


@dataclass(frozen=True, slots=True)
class Extras:
    """What a linear layer is given besides x, its weight and out; see `linear.linear`."""

    bias: Tensor | None = None
    scratch: Tensor | None = None
    counters: Tensor | None = None
    activation: Activation | None = None

    @property
    def kind(self) -> int:
        """The activation as kernels know it, −1: none."""
        return -1 if self.activation is None else KINDS[self.activation]


@dataclass(frozen=True, slots=True)
class Card:
    """What the choice of tiles asks of a card.

    `shared_bytes`: shared memory that one program may take. `multiplies_tiles`: Triton has a matrix
    instruction for it; below sm_80 it multiplies number by number, and only small tiles stay in
    registers.
    """

    shared_bytes: int
    multiplies_tiles: bool = True


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a linear layer is launched: its tile, and whether segments are apart."""

    block_rows: int
    block_tokens: int
    apart: bool
    num_warps: int
    num_stages: int

    def num_programs(self, tokens: int, rows: int, extras: Extras) -> int:
        """Tiles of the output; where it is gated, a tile has half as many outputs as rows."""
        width, outputs = rows, self.block_rows
        if extras.activation is not None:
            width, outputs = rows // 2, outputs // 2
        return ceil_div(width, outputs) * ceil_div(tokens, self.block_tokens)


def num_rows(out: Tensor, extras: Extras) -> int:
    """Rows of the weight: twice the outputs where they are gated."""
    return int(out.shape[1]) * (1 if extras.activation is None else 2)


def choose_tiling(
    tokens: int, rows: int, cols: int, tile: WeightTile, card: Card, *, may_split: bool
) -> Tiling:
    """The tiles of a step of `tokens` > 0; every choice gives the same bits.

    Few tokens are a matter of reading the weight: two programs a multiprocessor, as many loads
    under way as fit. Many are a matter of multiplying: large tiles.
    """
    segments = k_segments(rows, cols)
    few = tokens <= _FEW_TOKENS
    block = tile.many_tokens
    if segments == 1 and card.shared_bytes == _LARGEST_SHARED and tokens > block:
        block = tile.whole_tokens
    if few or not card.multiplies_tiles:
        block = 16 if tokens <= 16 else 32 if tokens <= 32 else 64
    # What is read of tokens counts as well, from some on: it is shared among more rows.
    height = 64 if block == 16 else _MANY_ROWS
    warps = 4 if block == 16 else 8
    if not card.multiplies_tiles:
        height = 32 if block == 16 else 64
    programs = ceil_div(tokens, block) * ceil_div(rows, height)
    apart = may_split and segments > 1 and (few or 2 * programs <= _MULTIPROCESSORS)
    stage = tile.columns * (height * tile.bits // 8 + block * tile.float_bytes)
    room = card.shared_bytes // 2 - _RESERVED_SHARED if few else card.shared_bytes
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
def card_of(device: torch.device) -> Card:
    """What a device is; the interpreter counts as sm_90."""
    on_card = device.type == "cuda"
    return card_of_capability(torch.cuda.get_device_capability(device) if on_card else (9, 0))


def card_of_capability(capability: tuple[int, int]) -> Card:
    """What a card of a compute capability is."""
    return Card(_SHARED_KIB.get(capability, _SMALLER_KIB) << 10, capability >= _AMPERE)


@triton.jit
def place(rows, num_tokens, BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr, GATED: tl.constexpr):
    """A program's first output, its rows of the weight, which of them count, and its tokens.

    GATED: half of the rows are gates, the others what they multiply, which lies behind all gates.
    Eight tiles of outputs pass over all tokens, so that what programs at work at the same time
    read fits into the L2 cache.
    """
    OUTPUTS: tl.constexpr = BLOCK_R // 2 if GATED else BLOCK_R
    width = rows // 2 if GATED else rows
    tiles_r, tiles_t = tl.cdiv(width, OUTPUTS), tl.cdiv(num_tokens, BLOCK_T)
    index = tl.program_id(0)
    first = index // (8 * tiles_t) * 8
    height = tl.minimum(tiles_r - first, 8)
    inner = index % (8 * tiles_t)
    index = tl.arange(0, BLOCK_R)
    first_output = (first + inner % height) * OUTPUTS
    output = first_output + index % OUTPUTS
    row = output + index // OUTPUTS * width
    token = inner // height * BLOCK_T + tl.arange(0, BLOCK_T)
    return first_output, row, output < width, token


@triton.jit
def finish(
    total, bias, out, scratch, counters, first_output, row, counts, token, rows, num_tokens,
    out_stride, APART: tl.constexpr, COUNTED: tl.constexpr, HAS_BIAS: tl.constexpr,
    KIND: tl.constexpr,
):  # fmt: skip
    """Leaves the sum of a segment in scratch, or the output with its bias where it belongs.

    KIND: the activation, −1 where there is none. COUNTED: the program that is the last of its tile
    to leave a segment adds all of them, in order as ever, and puts the counter back to zero.
    """
    if APART:
        inside = counts[:, None] & (token < num_tokens)[None, :]
        line = (tl.program_id(1) * num_tokens + token).to(tl.int64) * rows
        tl.store(scratch + line[None, :] + row[:, None], total, mask=inside)
        if COUNTED:
            # Every thread's part is stored before one of them counts (release), and what others
            # stored is there when all of them have been counted (acquire).
            tl.debug_barrier()
            counted = tl.atomic_add(counters + tl.program_id(0), 1, sem="acq_rel", scope="gpu")
            if counted == tl.num_programs(1) - 1:
                whole = tl.zeros(total.shape, tl.float32)
                for segment in range(tl.num_programs(1)):
                    part = (segment * num_tokens + token).to(tl.int64) * rows
                    # Past the L1 cache, which knows nothing of other multiprocessors' stores.
                    whole += tl.load(
                        scratch + part[None, :] + row[:, None], mask=inside, other=0.0,
                        cache_modifier=".cg",
                    )  # fmt: skip
                _store(
                    whole, bias, out, first_output, row, counts, token, rows, num_tokens,
                    out_stride, HAS_BIAS, KIND,
                )  # fmt: skip
                tl.store(counters + tl.program_id(0), 0)
    else:
        _store(
            total, bias, out, first_output, row, counts, token, rows, num_tokens, out_stride,
            HAS_BIAS, KIND,
        )  # fmt: skip


@triton.jit
def _store(
    total, bias, out, first_output, row, counts, token, rows, num_tokens, out_stride,
    HAS_BIAS: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    if HAS_BIAS:
        total += tl.load(bias + row, mask=counts, other=0.0)[:, None]
    # Rounded before an activation as well: what a launch of its own would read.
    result = total.to(out.dtype.element_ty)
    if KIND >= 0:
        OUTPUTS: tl.constexpr = total.shape[0] // 2
        pair = tl.reshape(result.to(tl.float32), (2, OUTPUTS, total.shape[1]))
        gate, up = tl.split(tl.permute(pair, (1, 2, 0)))
        result = (activated(gate, KIND) * up).to(out.dtype.element_ty)
        row = first_output + tl.arange(0, OUTPUTS)
        counts = row < rows // 2
    line = token.to(tl.int64) * out_stride
    inside = counts[:, None] & (token < num_tokens)[None, :]
    tl.store(out + line[None, :] + row[:, None], result, mask=inside)


@triton.jit(do_not_specialize=["num_tokens"])
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


def check_scratch(extras: Extras, tokens: int, rows: int, cols: int) -> None:
    """Raises KernelError where segments or counters would not fit."""
    scratch, counters = extras.scratch, extras.counters
    if counters is not None and (counters.dtype != torch.int32 or len(counters) < NUM_COUNTERS):
        raise KernelError(
            f"counters are {len(counters)} of {counters.dtype}; needed: {NUM_COUNTERS} of int32"
        )
    needed = k_segments(rows, cols) * tokens * rows
    if scratch is not None and (scratch.dtype != torch.float32 or scratch.numel() < needed):
        raise KernelError(
            f"scratch has {scratch.numel()} elements of {scratch.dtype}; {tokens} tokens of a "
            f"{rows} × {cols} weight need {needed} of float32",
            hint="allocate tiles.scratch_floats",
        )
