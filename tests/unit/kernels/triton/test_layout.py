"""Device layouts: words of 4-bit codes, segments of sums, bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hearth.core.spec import DType, QuantSpec, SlotKind, WeightSlot
from hearth.kernels.triton import layout


@given(st.integers(1, 9), st.integers(1, 800))
def test_words_hold_every_code_and_the_middle_code_behind_them(rows: int, cols: int) -> None:
    codes = torch.randint(0, 16, (rows, cols), dtype=torch.uint8)
    words = layout.pack_words(codes)
    assert words.shape == (layout.words_a_row(cols), rows)
    assert words.dtype == torch.int32
    assert torch.equal(layout.unpack_words(words, cols), codes)
    padded = layout.unpack_words(words, words.shape[0] * 8)[:, cols:]
    assert (padded == 8).all()


def test_a_word_holds_columns_32_apart() -> None:
    codes = (torch.arange(512) // 32 % 16).to(torch.uint8)[None]
    words = layout.pack_words(codes)
    assert words[3, 0].item() == 0x76543210
    assert int(words[32, 0]) & 0xFFFFFFFF == 0xFEDCBA98


@given(st.integers(1, 160_000), st.integers(1, 40_000))
def test_segments_are_whole_blocks_of_at_least_512_columns_and_cover_all(
    rows: int, cols: int
) -> None:
    width, segments = layout.segment_columns(rows, cols), layout.k_segments(rows, cols)
    assert width % layout.BLOCK_COLUMNS == 0
    assert (segments - 1) * width < cols <= segments * width
    assert segments == 1 or width >= 512
    assert segments <= 8


@pytest.mark.parametrize(
    ("rows", "cols", "segments"),
    [
        (27_392, 4096, 1),
        (4608, 4096, 4),
        (4096, 13_696, 4),
        (2560, 2048, 4),
        (96, 4096, 8),
        (96, 511, 1),
    ],
)
def test_segments_of_known_shapes(rows: int, cols: int, segments: int) -> None:
    """A change of these changes the bits of every answer."""
    assert layout.k_segments(rows, cols) == segments


@pytest.mark.parametrize(
    ("quant", "expected"),
    [
        (QuantSpec(DType.BFLOAT16), 128 * 200 * 2),
        (QuantSpec(bits=4, group_size=64), 100 * (128 + 4 * 4)),
        (QuantSpec(bits=4, group_size=64, symmetric=False), 100 * (128 + 4 * 5)),
        (QuantSpec(bits=8, group_size=128), 100 * (200 + 2 * 4)),
        (QuantSpec(bits=8, group_size=128, is_float=True), 100 * (200 + 2 * 4)),
    ],
)
def test_bytes_are_those_of_the_tensors(quant: QuantSpec, expected: int) -> None:
    slot = WeightSlot("w", SlotKind.LINEAR, 50, 200, (), quant, stack=2)
    assert layout.matrix_bytes(slot) == expected
