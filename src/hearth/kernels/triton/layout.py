"""How weights lie on the device, how many bytes that is, and how sums over their columns are cut.

The one place that knows. Dense matrices are [rows, cols], row-major. Codes of 4 bits lie eight to
an int32 word, [32 · blocks, rows], a block being 256 columns: word 32 · b + i of a row holds
columns 256 · b + 32 · j + i for j = 0 … 7, the first in the low bits. So neighbouring threads read
neighbouring rows, and the same four bits of 32 neighbouring words are 32 neighbouring columns: they
become an operand of two matrix instructions (k = 16) in the registers that loaded them, without a
way through shared memory, and the smallest group is one such operand. Codes of 8 bits and FP8 are
uint8 [rows, cols]. Scales and zero points are [groups, rows]. Rows of a stack follow each other.

Sums over columns are cut into segments at multiples of a block, by the shape of the weight alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from hearth.core.units import ceil_div, round_up

if TYPE_CHECKING:
    from torch import Tensor

    from hearth.core.spec import WeightSlot

BLOCK_COLUMNS = 256
WORD_CODES = 8
CHUNK_COLUMNS = BLOCK_COLUMNS // WORD_CODES  # neighbouring columns, each in a word of its own
MIDDLE_4_BITS = 8
ROW_MULTIPLE = 64  # dense matrices are allocated with so many rows, or a multiple
# So many programs, about two a multiprocessor of a large card (132), keep its memory busy; a
# segment shorter than 512 columns costs more in additions than it brings.
_WANTED_PROGRAMS = 256
_MOST_SEGMENTS = 8
_LEAST_SEGMENT_BLOCKS = 2


@dataclass(frozen=True, slots=True)
class DenseMatrix:
    """`data`: [rows, cols] in bfloat16, float16 or float32."""

    data: Tensor


@dataclass(frozen=True, slots=True)
class CodedMatrix:
    """A weight is scale · (code − zero point), the middle code where `zeros` is None.

    `codes`: int32 [words, rows] of 4 bits (`pack_words`), else uint8 [rows, cols]; padded columns
    have the middle code. `scales` [groups, rows], float32 or the float type that holds them;
    `zeros` [groups, rows] uint8. `is_float`: codes are FP8 (e4m3) numbers without a zero point.
    `group_size`: a multiple of 32.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int
    group_size: int
    cols: int
    is_float: bool = False


Matrix: TypeAlias = DenseMatrix | CodedMatrix


def segment_columns(rows: int, cols: int) -> int:
    """Columns of a segment (the last may be shorter), a multiple of BLOCK_COLUMNS."""
    blocks = ceil_div(cols, BLOCK_COLUMNS)
    tiles = ceil_div(rows, ROW_MULTIPLE)
    segments = 1
    while (
        segments < _MOST_SEGMENTS
        and tiles * segments < _WANTED_PROGRAMS
        and blocks >= 2 * segments * _LEAST_SEGMENT_BLOCKS
    ):
        segments *= 2
    return ceil_div(blocks, segments) * BLOCK_COLUMNS


def k_segments(rows: int, cols: int) -> int:
    """Segments that a sum over `cols` is cut into; depends on the shape alone, never on a step."""
    return ceil_div(cols, segment_columns(rows, cols))


def words_a_row(cols: int) -> int:
    """int32 words of one row of 4-bit codes."""
    return round_up(cols, BLOCK_COLUMNS) // WORD_CODES


def pack_words(codes: Tensor) -> Tensor:
    """Codes of 4 bits, uint8 [rows, cols], as int32 words [words_a_row(cols), rows]; allocates."""
    import torch

    rows, cols = codes.shape
    padded = codes.new_full((rows, round_up(cols, BLOCK_COLUMNS)), MIDDLE_4_BITS)
    padded[:, :cols] = codes
    parts = padded.view(rows, -1, WORD_CODES, CHUNK_COLUMNS)
    halves = [torch.zeros_like(parts[:, :, 0], dtype=torch.int32) for _ in range(2)]
    for index in range(WORD_CODES):
        half = halves[index // 4]
        half |= parts[:, :, index].to(torch.int32) << 4 * (index % 4)
    words = halves[0] | halves[1] << 16
    return words.reshape(rows, -1).T.contiguous()


def unpack_words(words: Tensor, cols: int) -> Tensor:
    """What `pack_words` was given: uint8 [rows, cols]; allocates."""
    import torch

    rows = words.shape[1]
    blocks = words.T.reshape(rows, -1, 1, CHUNK_COLUMNS)
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    codes = (blocks >> shifts[:, None]) & 15
    return codes.reshape(rows, -1)[:, :cols].to(torch.uint8)


def matrix_bytes(slot: WeightSlot, float_bytes: int = 2) -> int:
    """Bytes that a linear slot or a table takes on the device, of all its stacked matrices.

    `float_bytes`: of an element of the float type that the device computes in, where the slot is
    not quantized.
    """
    quant, rows = slot.quant, slot.total_rows
    if not quant.bits:
        return round_up(rows, ROW_MULTIPLE) * slot.cols * float_bytes
    codes = words_a_row(slot.cols) * 4 if quant.bits == 4 else slot.cols
    head = 4 + (0 if quant.symmetric or quant.is_float else 1)
    return rows * (codes + ceil_div(slot.cols, quant.group_size) * head)
