"""Equal bits of attention, in Triton's interpreter with products in a fixed order.

Decode and prefill, however rows are cut into chunks, programs and segments. What the order of a
card's own products does is for tests/gpu.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import tests.support.triton_exact as interpreter  # before the kernels: chooses it
import torch
from tests.contract.plan_builder import Track
from tests.unit.kernels.triton.paged import (
    Case,
    Paged,
    chunks_of,
    new_track,
    random_rows,
    shape,
    without_hidden_blocks,
)

from hearth.core.spec import KvDType
from hearth.core.step import StepPlan

BIT_CASES = [
    Case(shape(2, 1, 16), block_size=256),
    Case(shape(3, 1, 20, window=70), block_size=64),
    Case(shape(4, 1, 16, soft_cap=2.0), KvDType.BFLOAT16, torch.bfloat16, 128),
    Case(shape(2, 2, 16), KvDType.INT8, torch.bfloat16, 32),
]


@pytest.mark.parametrize("case", BIT_CASES, ids=str)
def test_a_row_has_the_same_bits_in_decode_and_in_chunks_alone_and_in_company(case: Case) -> None:
    length = 330
    paged = Paged(case)
    lone, other = new_track(length), new_track(100)
    plan = paged.builder.plan([*chunks_of([lone, other], [length, 100])])
    qkv = random_rows(case, length + 100, 3)
    paged.write(qkv, plan)
    with interpreter.ordered_products():
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
        for runs in (1, 5):
            assert torch.equal(paged.attend_decode(qkv[single], step, runs), whole[single])
        got = paged.attend_decode(qkv[single], step, 2, is_counted=True)
        assert torch.equal(got, whole[single])
        got = paged.attend_decode(qkv[single], step, 2, has_scratch=False)
        assert torch.equal(got, whole[single])


def test_many_segments_are_added_in_the_same_order_everywhere() -> None:
    """Of two segments no order of sums could show."""
    case, length = Case(shape(2, 1, 16), block_size=64), 1100
    paged, track = Paged(case), new_track(length)
    plan = paged.builder.plan(chunks_of([track], [length]))
    qkv = random_rows(case, length, 3)
    paged.write(qkv, plan)
    with interpreter.ordered_products():
        rows = qkv[-3:]
        chunk = paged.attend(rows, chunk_plan(paged, [(track, length - 3, length)]))
        step = chunk_plan(paged, [(track, length - 1, length)])
        for runs, is_counted in ((1, False), (2, False), (2, True), (7, True)):
            got = paged.attend_decode(rows[-1:], step, runs, is_counted=is_counted)
            assert torch.equal(got[0], chunk[-1])
        assert torch.equal(paged.attend_decode(rows[-1:], step, 2, has_scratch=False)[0], chunk[-1])


def chunk_plan(paged: Paged, parts: list[tuple[Track, int, int]]) -> StepPlan:
    """A plan of rows first … last − 1 of tracks that are stored already."""
    chunks = []
    for track, first, last in parts:
        view = replace(track, num_computed=first, blocks=list(track.blocks))
        chunks += chunks_of([view], [last - first])
    plan = paged.builder.plan(chunks)
    window, size = paged.case.shape.window, paged.case.block_size
    return without_hidden_blocks(plan, window, size) if window else plan
