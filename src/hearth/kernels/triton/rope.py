"""Rotary embedding on the device: angles once a step, then rotation and the write into the cache.

A layer's q, k and v rows go through one kernel: head norms where the model has them, rotation of q
in place and of k on its way into the cache, codes where the cache keeps codes. Rotated keys are
not written back to the rows, since attention reads them as stored.
"""

# A launcher takes its tensors.
# ruff: noqa: PLR0913, PLR0917
from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton

from hearth.core.spec import RopePairing, RopeSpec
from hearth.core.units import ceil_div
from hearth.kernels.triton.kv import KvCache
from hearth.kernels.triton.rope_kernels import angles_kernel, rope_write_kernel

_ANGLE_ROWS = 8
_TILE_HEADS = 8


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """Weights [head_dim], float32, of the norms of each query and key head before rotation."""

    q_weight: torch.Tensor
    k_weight: torch.Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Heads of a q, k, v row."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


def angles(positions: torch.Tensor, rope: RopeSpec, out: torch.Tensor) -> None:
    """Cosines, then sines, of positions [3, T] int32 into out [T, rotary_dim] float32.

    The frequencies of a `rope` are copied to the device when it is first seen (so not while a
    graph is captured) and kept.
    """
    frequencies, sections = _frequencies(rope, out.device)
    half, num_rows = frequencies.numel(), out.shape[0]
    angles_kernel[(ceil_div(num_rows, _ANGLE_ROWS),)](
        positions, frequencies, sections, out, num_rows, positions.stride(0),
        rope.attention_scaling, HALF=half, WIDTH=triton.next_power_of_2(half), ROWS=_ANGLE_ROWS,
        enable_fp_fusion=False,
    )  # fmt: skip


def rope_and_write(
    qkv: torch.Tensor,
    angles: torch.Tensor | None,
    slots: torch.Tensor,
    cache: KvCache,
    group: int,
    layer: int,
    heads: HeadShape,
    rope: RopeSpec | None,
    norms: HeadNorms | None = None,
) -> None:
    """Norms and rotates q in place, and stores the k (normed, rotated) and v of every row.

    qkv [T, (heads + 2 · kv heads) · head_dim]; angles [T, rotary_dim] of `angles`; slots [T] int32,
    −1: nothing is stored. Without a `rope` nothing is rotated.
    """
    stored = cache.group(group)
    layout = stored.layout
    _launch(
        qkv, angles, slots, (stored.data, stored.scales), heads, rope, norms,
        (layout.block_stride, layer * layout.layer_stride, layout.head_stride, layout.value_offset),
        BLOCK_SIZE=layout.block_size, CODES=stored.codes, WRITES=True,
    )  # fmt: skip


def rope_in_place(
    qkv: torch.Tensor,
    angles: torch.Tensor,
    heads: HeadShape,
    rope: RopeSpec,
    norms: HeadNorms | None = None,
) -> None:
    """Norms and rotates q and k in place, without a cache (images); else as `rope_and_write`."""
    _launch(
        qkv, angles, angles, (qkv, qkv), heads, rope, norms, (0, 0, 0, 0),
        BLOCK_SIZE=1, CODES=0, WRITES=False,
    )  # fmt: skip


def _launch(
    qkv: torch.Tensor,
    angles: torch.Tensor | None,
    slots: torch.Tensor,
    memory: tuple[torch.Tensor, torch.Tensor],
    heads: HeadShape,
    rope: RopeSpec | None,
    norms: HeadNorms | None,
    strides: tuple[int, int, int, int],
    **constants: object,
) -> None:
    # Without a rotation a head is cut all the same, so that one kernel serves both.
    rotary = rope.rotary_dim if rope is not None else heads.head_dim // 2 * 2
    half, rest = rotary // 2, heads.head_dim - rotary
    q_tiles = ceil_div(heads.num_heads, _TILE_HEADS)
    kv_tiles = ceil_div(heads.num_kv_heads, _TILE_HEADS)
    q_weight, k_weight = (norms.q_weight, norms.k_weight) if norms is not None else (qkv, qkv)
    parts = q_tiles + kv_tiles * (2 if constants["WRITES"] else 1)
    rope_write_kernel[(qkv.shape[0], parts)](
        qkv, angles if angles is not None else qkv, slots, *memory, q_weight, k_weight,
        qkv.stride(0), *strides, norms.eps if norms is not None else 0.0,
        HEADS=heads.num_heads, KV_HEADS=heads.num_kv_heads, HEAD_DIM=heads.head_dim,
        HALF=half, HALF_WIDTH=triton.next_power_of_2(half), REST=rest,
        REST_WIDTH=triton.next_power_of_2(max(rest, 1)),
        IS_INTERLEAVED=rope is not None and rope.pairing is RopePairing.INTERLEAVED,
        ROTATES=rope is not None, NORMS=norms is not None,
        TILE_HEADS=_TILE_HEADS, Q_TILES=q_tiles, KV_TILES=kv_tiles,
        num_warps=4, enable_fp_fusion=False, **constants,
    )  # fmt: skip


@cache
def _frequencies(rope: RopeSpec, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Radians a position, and the row of the positions that each frequency follows."""
    sections = [0] * len(rope.inv_freq)
    if rope.sections:
        sections = [row for row, count in enumerate(rope.sections) for _ in range(count)]
    return (
        torch.tensor(rope.inv_freq, dtype=torch.float32, device=device),
        torch.tensor(sections, dtype=torch.int32, device=device),
    )
