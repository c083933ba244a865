"""Shapes of attention, and what tests over them share; import the interpreter first."""

from __future__ import annotations

import torch
from tests.contract.plan_builder import Track
from tests.unit.kernels.triton.paged import (
    Case,
    Paged,
    Reference,
    chunks_of,
    new_track,
    random_rows,
    shape,
)

from hearth.core.spec import KvDType

CASES = [
    Case(shape(4, 1, 16)),
    Case(shape(7, 1, 20), block_size=32),
    Case(shape(4, 2, 64), block_size=64),
    Case(shape(2, 2, 24, window=33)),
    Case(shape(6, 2, 16, window=100), block_size=128),
    Case(shape(4, 2, 24, window=70, soft_cap=0.8), block_size=32),
    Case(shape(16, 1, 16, soft_cap=30.0), block_size=256),
    Case(shape(4, 1, 40), KvDType.BFLOAT16, torch.bfloat16),
    Case(shape(4, 1, 16, window=65), KvDType.FLOAT16, torch.float16, 64),
    Case(shape(4, 2, 16), KvDType.INT8, torch.bfloat16),
    Case(shape(4, 2, 16), KvDType.INT8, torch.float16, 64),
    Case(shape(4, 2, 24), KvDType.INT8),
    Case(shape(3, 1, 32), KvDType.FP8, torch.bfloat16, 64),
    Case(shape(4, 2, 20, window=70), KvDType.FP8),
]
# Relative to the largest output. Of 16 bits: rounding of the output, and of weights where one that
# lies in the middle of two falls to the other side.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}


def prefilled(
    case: Case, contexts: tuple[int, ...], extra: int
) -> tuple[Paged, Reference, list[Track]]:
    """A cache and a reference with `contexts` stored, and tracks with `extra` tokens to go."""
    paged, reference = Paged(case, 80), Reference(case, 80, rounded=case.rows == torch.bfloat16)
    tracks = [new_track(context + extra) for context in contexts]
    plan = paged.builder.plan(chunks_of(tracks, contexts))
    if len(plan.tokens):
        qkv = random_rows(case, len(plan.tokens), 1)
        paged.write(qkv, plan)
        reference.attend(qkv, plan)
    return paged, reference, tracks


# Around the borders of tiles and segments; each case takes a few of them.
CONTEXTS = (0, 63, 257, 1, 64, 511, 65, 255, 513)


def check(case: Case, got: torch.Tensor, expected: torch.Tensor) -> None:
    """Within the tolerance, everywhere."""
    assert torch.isfinite(got).all()
    error = (got.float() - expected).abs().max()
    assert error < TOLERANCES[case.rows] * expected.abs().max()
