"""The functions that launches call: Triton's kernels, or plain torch in their place.

One table, so that whoever builds an executor says which, and tests run both.
"""

# A kernel's launcher takes its tensors.
# ruff: noqa: PLR0913, PLR0917
from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch

from hearth.core.errors import KernelError
from hearth.core.spec import RopeSpec
from hearth.kernels.triton import plain
from hearth.kernels.triton.plan_buffer import SamplingTensors, StepTables
from hearth.kernels.triton.sampling import Draw, SampledTensors, uniforms

INSTALL_HINT = "pip install 'hearth[cuda]'"


@dataclass(frozen=True, slots=True)
class Kernels:
    """Each launches on the current stream and waits for nothing; see `plain` for what they do."""

    name: str  # "triton", or "plain torch"
    embed: Callable[..., None]
    norm: Callable[..., None]
    gate: Callable[..., None]
    activate: Callable[..., None]
    select: Callable[..., None]
    soft_cap: Callable[..., None]
    linear: Callable[..., None]
    gated_linear: Callable[..., None]
    num_counters: int  # int32 zeros that linear layers count their parts in
    scratch_floats: Callable[[int, int, int], int]
    experts: Callable[..., None]
    angles: Callable[..., None]
    rope_and_write: Callable[..., None]
    attend: Callable[..., None]
    make_cache: Callable[..., Any]
    uniforms: Draw
    # Rows that need no sort; None: they go through `sampling` as others do.
    sample_without_sort: Callable[[torch.Tensor, SamplingTensors], SampledTensors] | None


def plain_kernels() -> Kernels:
    """Plain torch operations, on any device."""
    return Kernels(
        name="plain torch",
        embed=plain.embed,
        norm=plain.norm,
        gate=plain.gate,
        activate=plain.activate,
        select=plain.select,
        soft_cap=plain.soft_cap,
        linear=plain.linear,
        gated_linear=plain.gated_linear,
        num_counters=0,
        scratch_floats=plain.scratch_floats,
        experts=plain.experts,
        angles=plain.angles,
        rope_and_write=plain.rope_and_write,
        attend=plain.attend,
        make_cache=plain.PlainKvCache,
        uniforms=uniforms,
        sample_without_sort=None,
    )


def triton_kernels() -> Kernels:
    """Triton's. Raises KernelError where Triton is not installed."""
    try:
        rows, linear, tiles, kv, rope, sampling = (
            importlib.import_module(f"hearth.kernels.triton.{name}")
            for name in ("rows", "linear", "tiles", "kv", "rope", "sampling_kernels")
        )
    except ImportError as error:
        message = f"Triton's kernels cannot be loaded: {error}"
        raise KernelError(message, hint=INSTALL_HINT) from error
    return Kernels(
        name="triton",
        embed=rows.embed,
        norm=rows.norm,
        gate=rows.gate,
        activate=rows.activate,
        select=rows.select,
        soft_cap=rows.soft_cap,
        linear=linear.linear,
        gated_linear=linear.gated_linear,
        num_counters=tiles.NUM_COUNTERS,
        scratch_floats=linear.scratch_floats,
        experts=_experts(),
        angles=rope.angles,
        rope_and_write=_rope_and_write(rope),
        attend=_attend(),
        make_cache=kv.KvCache,
        uniforms=sampling.uniforms,
        sample_without_sort=sampling.sample_without_sort,
    )


def _rope_and_write(rope_module: ModuleType) -> Callable[..., None]:
    shape_of = cache(rope_module.HeadShape)

    def rope_and_write(
        qkv: torch.Tensor,
        angles: torch.Tensor | None,
        slots: torch.Tensor,
        kv: Any,
        group: int,
        layer: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        rope: RopeSpec | None,
        q_norm: torch.Tensor | None = None,
        k_norm: torch.Tensor | None = None,
        eps: float = 0.0,
    ) -> None:
        norms = None if q_norm is None else rope_module.HeadNorms(q_norm, k_norm, eps)
        heads = shape_of(num_heads, num_kv_heads, head_dim)
        rope_module.rope_and_write(qkv, angles, slots, kv, group, layer, heads, rope, norms)

    return rope_and_write


def _attend() -> Callable[..., None]:
    attention = importlib.import_module("hearth.kernels.triton.attention")
    shape_of = cache(attention.AttentionShape)

    def attend(
        qkv: torch.Tensor,
        out: torch.Tensor,
        kv: Any,
        group: int,
        layer: int,
        tables: StepTables,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        scale: float,
        window: int = 0,
        soft_cap: float = 0.0,
        is_decode: bool = False,
        scratch: torch.Tensor,
        counters: torch.Tensor,
    ) -> None:
        shape = shape_of(num_heads, num_kv_heads, head_dim, scale, window, soft_cap)
        if is_decode:
            attention.attend_decode(
                qkv, out, kv, group, layer, tables, shape, scratch, counters=counters
            )
        else:
            attention.attend(qkv, out, kv, group, layer, tables, shape)

    return attend


def _experts() -> Callable[..., None]:
    """Of the kernels where there are any, else plain torch."""
    try:
        experts: Callable[..., None] = importlib.import_module(
            "hearth.kernels.triton.experts"
        ).experts
    except ImportError:
        return plain.experts
    return experts
