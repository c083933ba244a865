"""Byte layouts of packed weights and KV blocks: the one place that knows their sizes.

Linear weights are packed in panels of PANEL_COLUMNS output columns: [ceil(rows / 64)][cols][64],
so that one vector holds neighbouring outputs and the reduction over `cols` runs strictly in
order. Stacked matrices lie behind each other, each in panels of its own. Tables that are not tied
to the head keep [rows][cols padded to 16]. Vectors are float32, padded with zeros to a multiple of
64. All packed tensors start at whole pages, so that the same layout serves in memory and in a file
that is mapped.

Quantized weights (csrc/quant.h draws them): a panel is a run of blocks, one for each group of
columns of K: 64 scales (bfloat16, or float32), 64 zero points where there are any, then the codes.
FP8 lies as other codes of 8 bits do. A quantized table has rows of 8-bit codes and their scales. A
row of a quantized buffer is a run of groups, each its int8 codes, then a float32 scale and minus
the sum of the codes as int32.

A KV block of one group is [layer][kv head][K part, V part]: K as [block_size / 16][head_dim][16]
(16 neighbouring keys in one vector), V as [block_size][head_dim padded to 16]; in bfloat16 elements
that are multiplied together lie in pairs (csrc/kernels_kv.h). Codes lie as bfloat16 does, each part
followed by its scales (csrc/kv_layout.h, kernels_kv_codes.h).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hearth.core.spec import DType, KvDType, SlotKind
from hearth.core.units import ceil_div, round_up
from hearth.kernels.packed_file import PAGE_BYTES, PackedTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hearth.core.program import BufferSpec, KvGroupSpec
    from hearth.core.spec import WeightSlot

PACKING_VERSION = 5
PANEL_COLUMNS = 64
LANES = 16
# Names of the layouts above in files; what is quantized adds its own.
_LAYOUTS = {SlotKind.LINEAR: "panel64", SlotKind.TABLE: "row16", SlotKind.VECTOR: "vector64"}
# Scales that are tried for a group of 4-bit codes beside the plain one. (Squared error left in the
# built-in model's matrices, groups of 128: 0.93 % with 8 near steps, 0.91 % with the 8 wide ones of
# kernels_fit.h, 0.90 % with 30 over any range, 0.87 % with zero points.)
SCALE_CANDIDATES = 8
# A group of an int8 row keeps residuals where the mean magnitude of its codes is below, and a code
# has so many steps of them; csrc/quant.h says why.
RESIDUAL_BELOW = 8
RESIDUAL_STEPS = 254
KV_SCALE_COLUMNS = 64  # elements of a value in 4 bits that share a scale
KV_SCALE_BYTES = 2  # bfloat16
MOST_CODED_HEAD_DIM = 512
BLOCK_SIZES = (16, 32, 64, 128, 256)
# An encoder's keys and values lie in blocks of so many patches; so many patches go together at
# most: two tiles of a linear layer.
ENCODER_BLOCK_ROWS = 64
ENCODER_CHUNK_ROWS = 192


@dataclass(frozen=True, slots=True)
class HostTensor:
    """A row-major tensor as it lies in a weight file: raw bytes, its element type and shape.

    `data` is uint8, [product(shape) · bytes an element], often a view of a memory map, and aligned
    to its element.
    """

    data: NDArray[np.uint8]
    dtype: DType
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CodeRows:
    """Rows of a quantized matrix as codes: a weight is scale · (code − zero point).

    Of FP8 it is scale · the number that the code is.

    `codes` [n, cols padded to whole groups] uint8, `scales` [n, groups] float32, `zeros` [n,
    groups] uint8, None where the middle code (8, 128) stands for zero.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8] | None = None


class WeightSink(Protocol):
    """Takes the weights of a program in, one checkpoint tensor at a time, and packs them."""

    def put(self, slot: WeightSlot, first_row: int, tensor: HostTensor) -> None:
        """Packs all rows of `tensor` into rows `first_row` … of the slot.

        `tensor.shape` is [n, cols] ([n] for a vector). Copies; keeps no reference. May be called
        from several threads for different slots. Raises KernelError when it cannot convert.
        """
        ...

    def put_codes(self, slot: WeightSlot, first_row: int, rows: CodeRows) -> None:
        """Packs rows that are codes of the slot's bits and groups already; else as `put`."""
        ...

    def fill_random(self, slot: WeightSlot, seed: int) -> None:
        """Fills a slot with reproducible random weights of a usable scale (norm weights: 1)."""
        ...


def packed_bytes(slot: WeightSlot) -> int:
    """Bytes of the packed form of a slot, padding included."""
    if slot.kind is SlotKind.VECTOR:
        return round_up(slot.rows, PANEL_COLUMNS) * 4
    if slot.kind is SlotKind.TABLE and slot.quant.bits:
        num_groups = -(-slot.cols // slot.quant.group_size)
        return slot.rows * round_up(
            num_groups * (slot.quant.group_size + slot.quant.scale_bytes), LANES
        )
    if slot.kind is SlotKind.TABLE:
        return slot.rows * round_up(slot.cols, LANES) * slot.quant.dtype.num_bytes
    return slot.stack * matrix_bytes(slot)


def matrix_bytes(slot: WeightSlot) -> int:
    """Bytes of one of the stacked matrices of a linear slot."""
    quant, rows = slot.quant, round_up(slot.rows, PANEL_COLUMNS)
    if not quant.bits:
        return rows * slot.cols * quant.dtype.num_bytes
    head = quant.scale_bytes + (0 if quant.symmetric else 1)
    codes = quant.group_size * quant.bits // 8
    return rows * -(-slot.cols // quant.group_size) * (head + codes)


def packed_tensors(slots: Sequence[WeightSlot]) -> tuple[PackedTensor, ...]:
    """Where each slot lies in the arena of packed weights."""
    tensors: list[PackedTensor] = []
    offset = 0
    for slot in slots:
        is_vector = slot.kind is SlotKind.VECTOR
        dtype = str(DType.FLOAT32) if is_vector else slot.quant.name
        shape = (slot.rows,) if is_vector else (slot.total_rows, slot.cols)
        num_bytes = packed_bytes(slot)
        tensors.append(
            PackedTensor(slot.name, _LAYOUTS[slot.kind], dtype, shape, offset, num_bytes)
        )
        offset += round_up(num_bytes, PAGE_BYTES)
    return tuple(tensors)


def row_bytes(width: int, group_size: int, *, residual: bool = False) -> int:
    """Bytes of one row of a program's buffer, without the padding behind it."""
    if not group_size:
        return 4 * width
    return -(-width // group_size) * (group_size + 8) * (2 if residual else 1)


def buffer_row_bytes(buffer: BufferSpec) -> int:
    """The same of a buffer."""
    return row_bytes(buffer.width, buffer.group_size, residual=buffer.residual)


def arena_bytes(slots: Sequence[WeightSlot]) -> int:
    """Bytes of all packed slots behind each other, each aligned; at least a page."""
    return max(PAGE_BYTES, sum(round_up(packed_bytes(slot), PAGE_BYTES) for slot in slots))


def kv_block_bytes(group: KvGroupSpec, block_size: int, dtype: KvDType) -> int:
    """Bytes of one block of a KV group, over all its layers; scales included."""
    token_bytes = kv_head_bytes(group.head_dim, dtype)
    return group.num_layers * group.num_kv_heads * block_size * token_bytes


def kv_head_bytes(head_dim: int, dtype: KvDType) -> int:
    """Bytes of one token's key and value in one head; scales included."""
    together = {KvDType.FLOAT32: 1, KvDType.INT4: 4}.get(dtype, 2)
    columns = round_up(head_dim, LANES)
    elements = round_up(head_dim, together) + columns
    num_scales = 0
    if dtype.is_coded:
        num_scales = 1 + (ceil_div(columns, KV_SCALE_COLUMNS) if dtype is KvDType.INT4 else 1)
    return elements * dtype.bits // 8 + num_scales * KV_SCALE_BYTES


def kv_refusal(dtype: KvDType, head_dim: int) -> str:
    """Why heads of this width cannot be stored so; empty: they can."""
    if dtype.is_coded and head_dim > MOST_CODED_HEAD_DIM:
        return f"heads are {head_dim} wide; permitted: up to {MOST_CODED_HEAD_DIM}"
    if dtype is KvDType.INT4 and head_dim % 2:
        return f"heads are {head_dim} wide; permitted: even widths, of which two codes share a byte"
    return ""
