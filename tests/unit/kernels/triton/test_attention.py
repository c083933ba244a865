"""Decode attention in Triton's interpreter against the torch reference; what must have no part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tests.support.triton_exact  # noqa: F401 -- before the kernels: chooses the interpreter
import torch
from tests.unit.kernels.triton.attention_cases import CASES, CONTEXTS, check, prefilled
from tests.unit.kernels.triton.paged import (
    Case,
    chunks_of,
    random_rows,
    shape,
    view_of,
    without_hidden_blocks,
)

from hearth.core.spec import KvDType


@pytest.mark.parametrize(("index", "case"), list(enumerate(CASES)), ids=str)
def test_decode_equals_the_reference_at_borders_of_tiles_and_segments(
    index: int, case: Case
) -> None:
    first = index * 3 % len(CONTEXTS)
    contexts = CONTEXTS[first : first + 3]
    paged, reference, tracks = prefilled(case, contexts, 1)
    plan = paged.builder.plan(chunks_of(tracks, [1] * len(contexts)))
    if case.shape.window:
        plan = without_hidden_blocks(plan, case.shape.window, case.block_size)
    qkv = random_rows(case, len(contexts), 2)
    paged.write(qkv, plan)
    expected = reference.attend(qkv, plan)
    check(case, paged.attend_decode(qkv, plan, num_runs=1 + index % 3), expected)


def test_rows_and_sequences_that_a_graph_has_too_many_write_nothing() -> None:
    case = Case(shape(2, 1, 16))
    paged, _, tracks = prefilled(case, (20, 5), 1)
    plan = paged.builder.plan(chunks_of(tracks, [1, 1]))
    qkv = random_rows(case, 4, 2)
    paged.write(qkv[:2], plan)
    expected = paged.attend_decode(qkv[:2], plan, 2)
    padded = replace(
        plan,
        row_start=np.array([0, 1, 2, 2, 2], np.int32),
        context=np.append(plan.context, [-1, -1]).astype(np.int32),
        block_start=np.array([[*row, row[-1], row[-1]] for row in plan.block_start], np.int32),
        first_block=np.zeros((2, 4), np.int32),
    )
    for got in (
        paged.attend_decode(qkv, padded, 2),
        paged.attend_decode(qkv, padded, 1),
        paged.attend(qkv, padded),
    ):
        assert torch.equal(got[:2], expected)
        assert got[2:].isnan().all()


@pytest.mark.parametrize("dtype", [KvDType.FLOAT32, KvDType.INT8])
@pytest.mark.parametrize("window", [0, 20])
def test_what_others_left_in_a_block_has_no_part_in_an_answer(dtype: KvDType, window: int) -> None:
    case = Case(shape(2, 1, 16, window=window), dtype)
    paged, reference, tracks = prefilled(case, (50,), 1)
    poisoned = paged.cache.group(1)
    used = sorted(tracks[0].blocks)
    view = view_of(paged.cache, 1, 1)
    last = tracks[0].blocks[50 // 16]
    for block in range(len(poisoned.data)):
        rows = slice(0, 16) if block not in used else slice(51 % 16, 16) if block == last else None
        if rows is not None:
            target = view.scales if dtype.is_coded else view.elements
            target[block, :, :, rows] = torch.nan
    plan = paged.builder.plan(chunks_of(tracks, [1]))
    if window:
        for block in tracks[0].blocks[: (50 - window + 1) // 16]:
            (view.scales if dtype.is_coded else view.elements)[block] = torch.nan
        plan = without_hidden_blocks(plan, window, 16)
    qkv = random_rows(case, 1, 2)
    paged.write(qkv, plan)
    expected = reference.attend(qkv, plan)
    check(case, paged.attend_decode(qkv, plan, 2), expected)
    check(case, paged.attend(qkv, plan), expected)
