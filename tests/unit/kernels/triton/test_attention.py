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


# Bits: what a row's attention is may depend on nothing but the row and the keys it sees.
BIT_CASES = [
    Case(shape(4, 2, 16)),
    Case(shape(3, 1, 20, window=70), block_size=64),
    Case(shape(4, 1, 16, soft_cap=2.0), KvDType.BFLOAT16, torch.bfloat16, 128),
    Case(shape(2, 1, 16), KvDType.INT8, torch.bfloat16, 32),
]


@pytest.mark.parametrize("case", BIT_CASES, ids=str)
def test_a_row_has_the_same_bits_in_decode_and_in_chunks_alone_and_in_company(case: Case) -> None:
    length = 330
    paged = Paged(case)
    lone, other = new_track(length), new_track(100)
    plan = paged.builder.plan([*chunks_of([lone, other], [length, 100])])
    qkv = random_rows(case, length + 100, 3)
    paged.write(qkv, plan)
    with triton_exact.ordered_products():
        whole = paged.attend(qkv, plan)
        for first, last in ((0, 7), (250, 257), (200, 264), (329, 330)):
            part = chunk_plan(paged, [(lone, first, last)])
            assert torch.equal(paged.attend(qkv[first:last], part), whole[first:last])
        both = chunk_plan(paged, [(other, 60, 63), (lone, 255, 319), (other, 99, 100)])
        rows = torch.cat([qkv[length + 60 : length + 63], qkv[255:319], qkv[-1:]])
        expected = torch.cat([whole[length + 60 : length + 63], whole[255:319], whole[-1:]])
        assert torch.equal(paged.attend(rows, both), expected)
        single = [0, 63, 64, 255, 256, 300, 329]
        step = chunk_plan(paged, [(lone, row, row + 1) for row in single])
        for runs in (1, 2, 5):
            assert torch.equal(paged.attend_decode(qkv[single], step, runs), whole[single])
        got = paged.attend_decode(qkv[single], step, 2, has_scratch=False)
        assert torch.equal(got, whole[single])


def chunk_plan(paged, parts):  # type: ignore[no-untyped-def]
    """A plan of rows first … last − 1 of tracks that are stored already."""
    chunks = []
    for track, first, last in parts:
        view = replace_track(track, first)
        chunks += chunks_of([view], [last - first])
    plan = paged.builder.plan(chunks)
    window, size = paged.case.shape.window, paged.case.block_size
    return without_hidden_blocks(plan, window, size) if window else plan


def replace_track(track, num_computed):  # type: ignore[no-untyped-def]
    """The same tokens and blocks, computed up to somewhere else."""
    return replace(track, num_computed=num_computed, blocks=list(track.blocks))
