"""Paged attention in Triton's interpreter: parity with the torch reference, and equal bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
triton_exact = pytest.importorskip("tests.support.triton_exact")

from tests.unit.kernels.triton.paged import (  # noqa: E402
    Case,
    Paged,
    Reference,
    chunks_of,
    new_track,
    random_rows,
    without_hidden_blocks,
)

from hearth.core.spec import KvDType  # noqa: E402
from hearth.kernels.triton.attention import AttentionShape  # noqa: E402

CONTEXTS = (0, 1, 63, 64, 65, 255, 257, 511, 513)


def shape(heads: int, kv_heads: int, dim: int, **more: float) -> AttentionShape:
    return AttentionShape(heads, kv_heads, dim, dim**-0.5, **more)  # type: ignore[arg-type] -- window


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


def prefilled(case: Case, contexts: tuple[int, ...], extra: int):  # type: ignore[no-untyped-def]
    """A cache and a reference with `contexts` stored, and tracks with `extra` tokens to go."""
    paged, reference = Paged(case), Reference(case, rounded=case.rows == torch.bfloat16)
    tracks = [new_track(context + extra) for context in contexts]
    plan = paged.builder.plan(chunks_of(tracks, contexts))
    if len(plan.tokens):
        qkv = random_rows(case, len(plan.tokens), 1)
        paged.write(qkv, plan)
        reference.attend(qkv, plan)
    return paged, reference, tracks


@pytest.mark.parametrize("case", CASES, ids=str)
def test_decode_equals_the_reference_at_every_length(case: Case) -> None:
    contexts = (0, 1, 63, 64, 257)
    paged, reference, tracks = prefilled(case, contexts, 1)
    plan = paged.builder.plan(chunks_of(tracks, [1] * len(contexts)))
    if case.shape.window:
        plan = without_hidden_blocks(plan, case.shape.window, case.block_size)
    qkv = random_rows(case, len(contexts), 2)
    paged.write(qkv, plan)
    expected = reference.attend(qkv, plan)
    got = paged.attend_decode(qkv, plan, num_runs=2).float()
    assert (got - expected).abs().max() < TOLERANCES[case.rows] * expected.abs().max()
    assert torch.equal(got, paged.attend_decode(qkv, plan, num_runs=1).float())
