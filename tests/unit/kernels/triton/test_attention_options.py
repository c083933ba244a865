"""Shapes of programs by card, and sizes that follow from limits."""

from __future__ import annotations

import pytest
import tests.support.triton_exact  # noqa: F401 -- before the kernels: chooses the interpreter
import torch
from hypothesis import given
from hypothesis import strategies as st

from hearth.kernels.triton.attention import decode_scratch_floats
from hearth.kernels.triton.attention_options import (
    Card,
    decode_options,
    decode_runs,
    row_options,
    width_of,
)
from hearth.kernels.triton.attention_tiles import SEGMENT_KEYS

LARGE, SMALL, OLD = Card(9, 227 << 10, 132), Card(8, 99 << 10, 24), Card(7, 64 << 10, 40)


@pytest.mark.parametrize("card", [LARGE, SMALL, OLD])
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
def test_decode_takes_all_heads_of_a_kv_head_and_the_instruction_of_prefill(
    card: Card, dim: int
) -> None:
    width = width_of(dim)
    prefill = row_options(card, width, torch.bfloat16)
    for heads_per_kv in (1, 7, 16, 71):
        decode = decode_options(card, heads_per_kv, width)
        assert decode.rows >= heads_per_kv
        if card.major >= 9:
            assert decode.rows >= 64
            assert prefill.rows >= 64
            assert decode.num_warps % 4 == prefill.num_warps % 4 == 0


def test_keys_are_split_where_sequences_do_not_fill_the_card() -> None:
    assert decode_runs(LARGE, 1, 2) == 132
    assert decode_runs(LARGE, 32, 2) == 4
    assert decode_runs(LARGE, 256, 2) == 1
    assert decode_runs(SMALL, 1, 8) == 6


@given(
    lengths=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 4000)), min_size=1, max_size=9),
    block_size=st.sampled_from((16, 32, 64, 128, 256)),
)
def test_parts_of_all_sequences_have_their_own_place_in_scratch(
    lengths: list[tuple[int, int]], block_size: int
) -> None:
    """The rule of `attention_decode._segments`, for sequences at (first key seen, position)."""
    listed, end = 0, 0
    for index, (hidden, seen) in enumerate(lengths):
        position = hidden + seen
        first_key = hidden // 64 * 64
        slot = listed * block_size // SEGMENT_KEYS + 2 * index
        assert slot >= end, "two sequences share a part"
        end = slot + position // SEGMENT_KEYS + 1 - first_key // SEGMENT_KEYS
        listed += position // block_size + 1 - hidden // block_size
    floats = decode_scratch_floats(len(lengths), listed * block_size, 1, 16)
    assert end * (16 + 2) <= floats
