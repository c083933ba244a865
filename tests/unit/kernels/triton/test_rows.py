"""Row kernels in Triton's interpreter against plain torch, over odd shapes, types and strides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tests.support.triton_cpu  # noqa: F401  before the kernels: chooses the interpreter
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from hearth.core.errors import KernelError
from hearth.core.spec import Activation
from hearth.kernels.codes import Codes
from hearth.kernels.e4m3 import to_e4m3
from hearth.kernels.triton import rows
from hearth.kernels.triton.layout import CodedMatrix, DenseMatrix, pack_words

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
few = settings(max_examples=12)
shapes = st.tuples(st.integers(0, 5), st.integers(1, 1100))
PLAIN: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.SILU: functional.silu,
    Activation.GELU_TANH: lambda x: functional.gelu(x, approximate="tanh"),
    Activation.GELU: functional.gelu,
    Activation.QUICK_GELU: lambda x: x * torch.sigmoid(1.702 * x),
}


def values(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (3 * torch.randn(*shape, generator=generator)).to(dtype)


def strided(count: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows that do not follow each other without a gap; the gap is NaN, which must not spread."""
    whole = torch.full((count, width + 24), torch.nan, dtype=dtype)
    return whole[:, :width]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    bound = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual.float(), expected.float(), rtol=bound, atol=bound)


def assert_product(actual: Tensor, expected: Tensor, size: Tensor) -> None:
    """Where 1 + erf cancels, float32's rounding of 1 is left, times what it is multiplied with."""
    bound = TOLERANCE[actual.dtype] * expected.abs() + 2e-7 * size.abs() + 1e-7
    assert ((actual.double() - expected).abs() <= bound).all()


def plain_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    normed = x.double() * (x.double().pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight.double()
    return normed if bias is None else normed + bias.double()


@few
@given(shapes, st.sampled_from(FLOATS), st.booleans(), st.booleans(), st.booleans())
def test_norm_is_that_of_float64_with_the_sum_bias_and_mean(
    shape: tuple[int, int], dtype: torch.dtype, add: bool, biased: bool, centered: bool
) -> None:
    count, width = shape
    x = strided(count, width)
    x.copy_(values(count, width))
    more = values(count, width, dtype=dtype, seed=1) if add else None
    weight, bias = values(width, seed=2), values(width, seed=3) if biased else None
    out = strided(count, width, dtype)
    total = x.clone() if more is None else x + more.float()
    rows.norm(x, weight, 1e-5, out, add=more, bias=bias, centered=centered)
    assert torch.equal(x, total)
    about = total - total.double().mean(-1, keepdim=True) if centered else total
    assert_close(out, plain_norm(about, weight, bias, 1e-5))


def test_a_norms_row_has_the_same_bits_alone_and_among_others() -> None:
    for width in (72, 1500):
        x, weight = values(19, width), values(width)
        together = torch.empty(19, width)
        rows.norm(x, weight, 1e-6, together)
        for row in (0, 7, 18):
            alone = torch.empty(1, width)
            rows.norm(x[row : row + 1], weight, 1e-6, alone)
            assert torch.equal(alone[0], together[row])


def test_a_norm_may_work_in_place_and_refuses_what_does_not_fit() -> None:
    x, weight = values(3, 100), values(100)
    expected = plain_norm(x, weight, None, 1e-5)
    rows.norm(x, weight, 1e-5, x)
    assert_close(x, expected)
    with pytest.raises(KernelError, match="permitted: rows of 100"):
        rows.norm(x, values(99), 1e-5, x)
    with pytest.raises(KernelError, match="permitted: up to"):
        rows.norm(torch.empty(1, 40_000), torch.empty(40_000), 1e-5, torch.empty(1, 40_000))


@few
@given(shapes, st.sampled_from(FLOATS), st.sampled_from(list(Activation)))
def test_gate_and_activate_are_torchs(
    shape: tuple[int, int], dtype: torch.dtype, activation: Activation
) -> None:
    count, width = shape
    x = strided(count, 2 * width, dtype)
    x.copy_(values(count, 2 * width))
    out = strided(count, width, dtype)
    rows.gate(x, out, activation)
    left, right = x[:, :width].double(), x[:, width:].double()
    assert_product(out, PLAIN[activation](left) * right, left * right)
    former = x.double()
    rows.activate(x, activation)
    assert_product(x, PLAIN[activation](former), former)


@pytest.mark.parametrize("activation", list(Activation))
def test_activations_of_extreme_values_are_finite(activation: Activation) -> None:
    x = torch.tensor([[-3e4, -90.0, -1e-30, 0.0, 1e-30, 90.0, 3e4]])
    expected = PLAIN[activation](x)
    rows.activate(x, activation)
    assert_close(x, expected)


def test_soft_cap_is_exact_to_a_few_bits_near_zero_and_far_from_it() -> None:
    x = torch.tensor([[0.0, 1e-6, -1e-3, 0.29 * 30, 0.31 * 30, -45.0, 1e4, -1e30]])
    expected = (torch.tanh(x.double() / 30) * 30).float()
    rows.soft_cap(x, 30.0)
    torch.testing.assert_close(x, expected, rtol=1e-6, atol=0)


@few
@given(st.lists(st.integers(-2, 12), max_size=6), st.sampled_from(FLOATS), st.integers(1, 1100))
def test_select_gives_rows_and_zeros_where_there_is_none(
    wanted: list[int], dtype: torch.dtype, width: int
) -> None:
    x = values(10, width, dtype=dtype)
    out = strided(len(wanted), width, dtype)
    rows.select(x, torch.tensor(wanted, dtype=torch.int32), out)
    expected = [x[i] if 0 <= i < 10 else torch.zeros_like(x[0]) for i in wanted]
    assert all(torch.equal(a, b) for a, b in zip(out, expected))


def test_embed_scales_tokens_and_places_features_unscaled() -> None:
    table = values(11, 70, dtype=torch.bfloat16)
    tokens = torch.tensor([3, 10, 0, -1, 11, 3], dtype=torch.int32)
    places = torch.tensor([4, -1, 0, 6], dtype=torch.int32)
    features, out = values(4, 70), strided(6, 70)
    rows.embed(DenseMatrix(table), tokens, out, 1.5, places, features)
    expected = torch.zeros(6, 70)
    for row in (1, 2, 5):
        expected[row] = table[tokens[row]].float() * 1.5
    expected[4], expected[0] = features[0], features[2]
    assert torch.equal(out, expected)
    rows.embed(DenseMatrix(table), tokens[:0], out[:0])


@pytest.mark.parametrize("form", ["int4", "int4 zeros", "int8", "int8 zeros", "fp8"])
def test_embed_reads_tables_of_codes(form: str) -> None:
    bits, group_size, cols = 4 if "int4" in form else 8, 64, 150
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 1 << bits, (9, cols), dtype=np.uint8)
    if form == "fp8":
        codes = to_e4m3(rng.normal(0, 9, (9, cols)).astype(np.float32))
        codes[0, :3] = (1, 0x85, 0x7E)  # subnormals, the largest
    scales = rng.random((9, 3)).astype(np.float32)
    zeros = np.full((9, 3), 1 << bits - 1, np.uint8)
    if "zeros" in form:
        zeros = rng.integers(0, 1 << bits, (9, 3), dtype=np.uint8)
    expected = Codes(codes, scales, zeros, form == "fp8").values(group_size)
    stored = torch.from_numpy(codes)
    table = CodedMatrix(
        pack_words(stored) if bits == 4 else stored,
        torch.from_numpy(scales.T.copy()),
        torch.from_numpy(zeros.T.copy()) if "zeros" in form else None,
        bits, group_size, cols, form == "fp8",
    )  # fmt: skip
    tokens, out = torch.tensor([8, 0, -1, 4], dtype=torch.int32), torch.empty(4, cols)
    rows.embed(table, tokens, out, 2.0)
    wanted = torch.from_numpy(expected)[[8, 0, 0, 4]] * 2
    wanted[2] = 0
    assert torch.equal(out, wanted)
