"""Attention of images, in Triton's interpreter."""

from __future__ import annotations

import pytest
import tests.support.triton_exact as interpreter  # before the kernels: chooses it
import torch
from tests.unit.kernels.triton.paged import shape

from hearth.kernels.triton.attention import AttentionShape
from hearth.kernels.triton.attention_image import attend_image


def rows(of: AttentionShape, count: int, dtype: torch.dtype) -> torch.Tensor:
    width = (of.num_heads + 2 * of.num_kv_heads) * of.head_dim
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1)).to(dtype)


def run(qkv: torch.Tensor, lengths: list[int], of: AttentionShape) -> torch.Tensor:
    """Segments of the given lengths; rows behind them belong to none."""
    start = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    owner = torch.full((len(qkv),), -1, dtype=torch.int32)
    for index, (first, last) in enumerate(zip(start.tolist(), start[1:].tolist())):
        owner[first:last] = index
    out = torch.full((len(qkv), of.num_heads * of.head_dim), torch.nan, dtype=qkv.dtype)
    attend_image(qkv, out, start, owner, of)
    return out


def expected(qkv: torch.Tensor, of: AttentionShape) -> torch.Tensor:
    """Of one segment, by torch."""
    heads = qkv.float().reshape(len(qkv), -1, of.head_dim).transpose(0, 1)
    q, k, v = torch.split(heads, [of.num_heads, of.num_kv_heads, of.num_kv_heads])
    mixed = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, scale=of.scale, enable_gqa=of.num_heads != of.num_kv_heads
    )
    return mixed.transpose(0, 1).flatten(1)


@pytest.mark.parametrize(
    ("of", "lengths", "dtype"),
    [
        (shape(2, 2, 64), [70, 1, 130], torch.float32),
        (shape(1, 1, 80), [64, 65], torch.float32),  # windows of Qwen2.5-VL
        (shape(4, 2, 20), [3, 40, 200], torch.float32),
        (shape(1, 1, 128), [150, 20], torch.bfloat16),
    ],
    ids=str,
)
def test_rows_see_their_segment_and_nothing_else(
    of: AttentionShape, lengths: list[int], dtype: torch.dtype
) -> None:
    total = sum(lengths)
    qkv = rows(of, total + 3, dtype)
    got = run(qkv, lengths, of)
    parts = [expected(part, of) for part in torch.split(qkv[:total], lengths)]
    tolerance = 2e-6 if dtype == torch.float32 else 1e-2
    assert (got[:total].float() - torch.cat(parts)).abs().max() < tolerance
    assert got[total:].isnan().all(), "rows of no segment"


def test_an_image_has_the_same_bits_alone_and_behind_another() -> None:
    of = shape(2, 1, 16)
    qkv = rows(of, 260, torch.float32)
    with interpreter.ordered_products():
        both = run(qkv, [57, 203], of)
        assert torch.equal(run(qkv[57:], [203], of), both[57:])
        assert torch.equal(run(qkv[:57], [57], of), both[:57])
