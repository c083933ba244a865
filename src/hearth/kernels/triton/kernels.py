"""The functions that launches call: Triton's kernels, or plain torch in their place.

One table, so that whoever builds an executor says which, and tests run both.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hearth.core.errors import KernelError
from hearth.core.program import KvGroupSpec
from hearth.core.spec import KvDType
from hearth.kernels.triton import plain

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
    scratch_floats: Callable[[int, int, int], int]
    experts: Callable[..., None]
    angles: Callable[..., None]
    rope_and_write: Callable[..., None]
    attend: Callable[..., None]
    make_cache: Callable[..., Any]


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
        scratch_floats=plain.scratch_floats,
        experts=plain.experts,
        angles=plain.angles,
        rope_and_write=plain.rope_and_write,
        attend=plain.attend,
        make_cache=plain.PlainKvCache,
    )


def triton_kernels() -> Kernels:
    """Triton's. Raises KernelError where Triton is not installed."""
    try:
        rows, linear, kv, attention = (
            importlib.import_module(f"hearth.kernels.triton.{name}")
            for name in ("rows", "linear", "kv", "attention")
        )
    except ImportError as error:
        raise KernelError(
            f"Triton's kernels cannot be loaded: {error}", hint=INSTALL_HINT
        ) from error
    return Kernels(
        name="triton",
        embed=rows.embed,
        norm=rows.norm,
        gate=rows.gate,
        activate=rows.activate,
        select=rows.select,
        soft_cap=rows.soft_cap,
        linear=linear.linear,
        scratch_floats=linear.scratch_floats,
        experts=_experts(),
        angles=kv.angles,
        rope_and_write=kv.rope_and_write,
        attend=attention.attend,
        make_cache=_cache_of(kv.KvCache),
    )


def _experts() -> Callable[..., None]:
    """Of the kernels where there are any, else plain torch."""
    try:
        experts: Callable[..., None] = importlib.import_module(
            "hearth.kernels.triton.experts"
        ).experts
    except ImportError:
        return plain.experts
    return experts


def _cache_of(kind: Callable[..., Any]) -> Callable[..., Any]:
    def make(
        groups: tuple[KvGroupSpec, ...],
        num_blocks: tuple[int, ...],
        block_size: int,
        dtype: KvDType,
        device: torch.device,
    ) -> Any:
        return kind(groups, num_blocks, block_size, dtype, device)

    return make
