"""Shapes of attention's programs by card: rows, warps, tiles loaded ahead. None changes a bit.

Chosen so that Triton 3.7's ptxas spills nothing worth mentioning (checked by compiling for sm_80
and sm_90 with heads of 128) and shared memory suffices; not measured on a card yet. On sm_75
Triton compiles products to scalar instructions, not to tensor cores: it runs, slowly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton

from hearth.kernels.triton import tiles

LEAST_ROWS = 16  # of a product on tensor cores
_GROUP_ROWS = 64  # of one by a group of four warps, sm_90
_LARGE_SHARED_BYTES = 160 * 1024  # sm_80, sm_90, sm_100; others have 64 or 99 KiB
_PROGRAMS_PER_MULTIPROCESSOR = 2  # of decode attention: so many have their tiles in shared memory


@dataclass(frozen=True, slots=True)
class Card:
    """What of a device decides; `shared_bytes`: for one program."""

    major: int
    shared_bytes: int
    num_multiprocessors: int

    @property
    def has_large_shared(self) -> bool:
        """Whether several tiles of 128 columns fit beside the rows."""
        return self.shared_bytes >= _LARGE_SHARED_BYTES


@dataclass(frozen=True, slots=True)
class ProgramOptions:
    """(row, head) pairs of a program, its warps, and its tiles under way and in use."""

    rows: int
    num_warps: int
    num_stages: int


_INTERPRETER = Card(9, 227 * 1024, 4)


@cache
def card_of(device: torch.device) -> Card:
    """Of a CUDA device; of the CPU's interpreter, a card of the largest shapes."""
    if device.type != "cuda":
        return _INTERPRETER
    found = torch.cuda.get_device_properties(device)
    return Card(found.major, tiles.card_of(device).shared_bytes, found.multi_processor_count)


def row_options(card: Card, width: int, dtype: torch.dtype) -> ProgramOptions:
    """For prefill and images, heads of `width` columns."""
    if card.major < 8 or width > 256:
        return ProgramOptions(LEAST_ROWS, 8, 1)
    if dtype == torch.float32:
        return ProgramOptions(32, 4, 1)
    if width <= 128 and card.major >= 9 and card.has_large_shared:
        return ProgramOptions(128, 8, 3)
    return ProgramOptions(64, 8, 2 if width <= 128 or card.has_large_shared else 1)


def decode_options(card: Card, heads_per_kv: int, width: int) -> ProgramOptions:
    """For one row a sequence: all query heads of a kv head.

    From sm_90 on a tile has at least 64 rows, empty ones included: from there Triton takes the
    instruction of whole warp groups, as it does for prefill, and no question arises whether that
    of 16 rows adds in the same order. Memory, not arithmetic, is what decode waits for.
    """
    least = _GROUP_ROWS if card.major >= 9 else LEAST_ROWS
    rows = max(least, int(triton.next_power_of_2(heads_per_kv)))
    if card.major < 8:
        return ProgramOptions(rows, 8, 1)
    num_warps = 8 if rows >= _GROUP_ROWS else 4
    if width > 128:
        return ProgramOptions(rows, num_warps, 2 if card.has_large_shared else 1)
    # Blocks are looked up a stage before their keys are loaded: of 5, two tiles are under way.
    return ProgramOptions(rows, num_warps, 5 if card.has_large_shared else 2)


def decode_runs(card: Card, num_sequences: int, num_kv_heads: int) -> int:
    """Programs that share the segments of a sequence's kv head; 1: keys are not split."""
    wanted = _PROGRAMS_PER_MULTIPROCESSOR * card.num_multiprocessors
    return max(1, wanted // max(1, num_sequences * num_kv_heads))


def width_of(head_dim: int) -> int:
    """Columns of a tile: a power of two, at least those of a product on tensor cores."""
    return max(LEAST_ROWS, int(triton.next_power_of_2(head_dim)))
