"""Attention of chunks of sequences in Triton's interpreter against the torch reference."""

from __future__ import annotations

import pytest
import tests.support.triton_exact  # noqa: F401 -- before the kernels: chooses the interpreter
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.kernels.triton.attention_cases import CASES, CONTEXTS, check, prefilled
from tests.unit.kernels.triton.paged import (
    Case,
    chunks_of,
    random_rows,
    shape,
    without_hidden_blocks,
)


@pytest.mark.parametrize(("index", "case"), list(enumerate(CASES)), ids=str)
def test_chunks_of_sequences_of_any_length_equal_the_reference(index: int, case: Case) -> None:
    contexts = ((0, 130, 7), (64, 0, 250), (1, 63, 300))[index % 3]
    counts = ((70, 1, 5), (1, 3, 40), (2, 65, 1))[index % 3]
    paged, reference, tracks = prefilled(case, contexts, 70)
    plan = paged.builder.plan(chunks_of(tracks, counts))
    if case.shape.window:
        plan = without_hidden_blocks(plan, case.shape.window, case.block_size)
    qkv = random_rows(case, len(plan.tokens), 2)
    paged.write(qkv, plan)
    expected = reference.attend(qkv, plan)
    check(case, paged.attend(qkv, plan), expected)


@settings(max_examples=10, deadline=None)
@given(
    contexts=st.lists(st.sampled_from(CONTEXTS[:8]), min_size=1, max_size=3),
    counts=st.lists(st.integers(1, 40), min_size=3, max_size=3),
    block_size=st.sampled_from((16, 32, 64, 128, 256)),
    window=st.sampled_from((0, 1, 16, 63, 64, 65, 200)),
    heads=st.sampled_from(((1, 1), (3, 1), (4, 2), (20, 1))),
    dim=st.sampled_from((6, 16, 33)),
)
def test_any_plan_equals_the_reference(
    contexts: list[int],
    counts: list[int],
    block_size: int,
    window: int,
    heads: tuple[int, int],
    dim: int,
) -> None:
    case = Case(shape(*heads, dim, window=window), block_size=block_size)
    paged, reference, tracks = prefilled(case, tuple(contexts), 40)
    plan = paged.builder.plan(chunks_of(tracks, counts))
    if window:
        plan = without_hidden_blocks(plan, window, block_size)
    qkv = random_rows(case, len(plan.tokens), 2)
    paged.write(qkv, plan)
    check(case, paged.attend(qkv, plan), reference.attend(qkv, plan))
