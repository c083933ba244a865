"""Linear layers in Triton's interpreter: against float64, and bit for bit against themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import ordered_dot
from tests.unit.kernels.triton.matrices import FORMS, exact, matrix
from torch import Tensor
from triton.runtime import interpreter

from hearth.core.errors import KernelError
from hearth.core.spec import Activation
from hearth.kernels.triton import linear as linears
from hearth.kernels.triton import rows as row_kernels
from hearth.kernels.triton import tiles
from hearth.kernels.triton.layout import CodedMatrix, DenseMatrix, Matrix, k_segments
from hearth.kernels.triton.tiles import Extras, Tiling, WeightTile

BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
TOLERANCE = {FLOAT32: 3e-6, FLOAT16: 1e-3, BFLOAT16: 8e-3}
FEW, MANY = Tiling(64, 16, True, 4, 2), Tiling(128, 128, False, 8, 2)
some = settings(max_examples=8)


def inputs(tokens: int, cols: int, dtype: torch.dtype = BFLOAT16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    whole = torch.full((tokens, cols + 8), torch.nan, dtype=dtype)
    whole[:, :cols] = torch.randn(tokens, cols, generator=generator)
    return whole[:, :cols]


def scratch_for(tokens: int, rows: int, cols: int) -> Tensor:
    return torch.full((max(1, tiles.scratch_floats(tokens, rows, cols)),), torch.nan)


def run(
    x: Tensor,
    weight: Matrix,
    rows: int,
    tiling: Tiling,
    bias: Tensor | None = None,
    counters: Tensor | None = None,
) -> Tensor:
    """Float32 outputs with tiles of one's choice."""
    out = torch.full((len(x), rows), torch.nan)
    scratch = torch.full((k_segments(rows, x.shape[1]) * len(x) * rows,), torch.nan)
    linears.launch(x, weight, out, Extras(bias, scratch, counters), tiling)
    return out


def assert_close(actual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Within float32's rounding of the sum of magnitudes, and of the output's type."""
    expected = x.double() @ weight.T
    size = x.double().abs() @ weight.abs().T
    if bias is not None:
        expected, size = expected + bias.double(), size + bias.double().abs()
    bound = 3e-6 * size + TOLERANCE[actual.dtype] * expected.abs() + 1e-30
    assert ((actual.double() - expected).abs() <= bound).all()


@some
@given(
    st.integers(1, 20), st.integers(1, 150), st.integers(1, 300), st.sampled_from(list(TOLERANCE)),
    st.sampled_from(list(TOLERANCE)), st.sampled_from(list(TOLERANCE)), st.booleans(),
)  # fmt: skip
def test_dense_of_any_types_and_shape(
    tokens: int, rows: int, cols: int, dtype: torch.dtype, kind: torch.dtype, out_type: torch.dtype,
    biased: bool,
) -> None:  # fmt: skip
    x, weight = inputs(tokens, cols, dtype), inputs(rows, cols, kind, 1)
    bias = torch.randn(rows) if biased else None
    out = torch.full((tokens, rows + 3), torch.nan, dtype=out_type)[:, :rows]
    linears.linear(x, DenseMatrix(weight), out, bias=bias)
    assert_close(out, x, weight.double(), bias)


@some
@given(
    st.sampled_from(list(FORMS)), st.sampled_from([32, 64, 96, 128, 160, 256, 512]),
    st.integers(1, 20), st.integers(1, 150), st.integers(1, 700),
    st.sampled_from([BFLOAT16, FLOAT16]),
)  # fmt: skip
def test_codes_of_any_form_group_and_shape_lose_no_more_than_float32_sums(
    name: str, group_size: int, tokens: int, rows: int, cols: int, dtype: torch.dtype
) -> None:
    weight = matrix(FORMS[name], group_size, rows, cols)
    x, bias = inputs(tokens, cols, dtype), torch.randn(rows)
    out = torch.full((tokens, rows), torch.nan)
    linears.linear(x, weight, out, bias=bias)
    assert_close(out, x, exact(weight, rows), bias)


@pytest.mark.parametrize("name", ["dense", *FORMS])
def test_few_and_many_tokens_through_the_public_entry(name: str) -> None:
    rows, cols = 70, 1100
    weight = weight_of(name, rows, cols)
    for tokens in (1, 70):
        x, out = inputs(tokens, cols), torch.empty(tokens, rows)
        linears.linear(x, weight, out, scratch=scratch_for(tokens, rows, cols))
        assert_close(out, x, exact(weight, rows), None)


def weight_of(name: str, rows: int, cols: int) -> Matrix:
    if name == "dense":
        return DenseMatrix(inputs(rows, cols, seed=5))
    return matrix(FORMS[name], 96 if "zeros" in name else 128, rows, cols)


@pytest.fixture
def ordered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", ordered_dot.dot)


@pytest.mark.usefixtures("ordered")
@pytest.mark.parametrize("name", ["dense", "int4", "int4 zeros", "fp8"])
def test_a_row_has_the_same_bits_with_few_and_many_tokens_and_any_tile(name: str) -> None:
    rows, cols = 70, 1120
    assert k_segments(rows, cols) == 2
    weight, bias = weight_of(name, rows, cols), torch.randn(rows)
    x = inputs(70, cols)
    whole = run(x, weight, rows, MANY, bias)
    assert_close(whole, x, exact(weight, rows), bias)
    for tokens, block in ((1, 16), (16, 16), (17, 32), (70, 64)):
        tiling = Tiling(64, block, True, 4, 2)
        assert torch.equal(run(x[:tokens], weight, rows, tiling, bias), whole[:tokens])
    joined = run(x[:3], weight, rows, Tiling(64, 16, False, 4, 2), bias)
    assert torch.equal(joined, whole[:3])
    counters = torch.zeros(tiles.NUM_COUNTERS, dtype=torch.int32)
    for _ in range(2):
        counted = run(x[:17], weight, rows, Tiling(64, 16, True, 4, 2), bias, counters)
        assert torch.equal(counted, whole[:17])
        assert not counters.any()


@pytest.mark.usefixtures("ordered")
@pytest.mark.parametrize("name", ["dense", "int4"])
def test_a_rows_bits_do_not_depend_on_the_others(name: str) -> None:
    weight, x = weight_of(name, 40, 520), inputs(5, 520)
    expected = run(x, weight, 40, FEW)
    others = x.clone()
    others[:2] = torch.nan
    others[3:] = 1e4
    assert torch.equal(run(others, weight, 40, FEW)[2], expected[2])


@pytest.mark.usefixtures("ordered")
def test_scratch_and_counters_change_nothing_but_the_way() -> None:
    weight, x = weight_of("dense", 70, 1024), inputs(4, 1024)
    without, with_it, counted = (torch.empty(4, 70) for _ in range(3))
    counters = torch.zeros(tiles.NUM_COUNTERS, dtype=torch.int32)
    linears.linear(x, weight, without)
    linears.linear(x, weight, with_it, scratch=scratch_for(4, 70, 1024))
    linears.linear(x, weight, counted, scratch=scratch_for(4, 70, 1024), counters=counters)
    assert torch.equal(with_it, without)
    assert torch.equal(counted, without)


@pytest.mark.usefixtures("ordered")
@pytest.mark.parametrize(
    ("name", "out_type"), [("dense", FLOAT32), ("dense", BFLOAT16), ("int4", BFLOAT16)]
)
def test_a_gated_linear_layer_is_a_linear_layer_and_a_gate_bit_for_bit(
    name: str, out_type: torch.dtype
) -> None:
    width, cols = 45, 1120
    weight, bias = weight_of(name, 2 * width, cols), torch.randn(2 * width)
    counters = torch.zeros(tiles.NUM_COUNTERS, dtype=torch.int32)
    x = inputs(17, cols)
    between, expected = torch.empty(17, 2 * width, dtype=out_type), torch.empty(17, width)
    expected = expected.to(out_type)
    linears.linear(x, weight, between, bias=bias)
    row_kernels.gate(between, expected, Activation.SILU)
    scratch = scratch_for(17, 2 * width, cols)
    for tokens in (3, 17):
        for used in (None, counters):
            out = torch.full((tokens, width + 3), torch.nan, dtype=out_type)[:, :width]
            linears.gated_linear(
                x[:tokens], weight, out, Activation.SILU, bias=bias, scratch=scratch, counters=used
            )
            assert torch.equal(out, expected[:tokens])
    assert not counters.any()


def test_codes_are_exact_where_float32_is() -> None:
    """Integers small enough that no sum is rounded: every bit must be right."""
    for name, form in FORMS.items():
        weight = matrix(form, 64, 33, 200)
        assert isinstance(weight, CodedMatrix)
        weight.scales.copy_(2.0 ** torch.randint(-2, 3, weight.scales.shape))
        x = torch.randint(-2, 3, (3, 200)).to(BFLOAT16)
        out = torch.empty(3, 33)
        linears.linear(x, weight, out)
        assert torch.equal(out.double(), x.double() @ exact(weight, 33).T), name


def test_no_tokens_do_nothing_and_padded_rows_are_not_read() -> None:
    data = inputs(128, 64)
    linears.linear(inputs(0, 64), DenseMatrix(data), torch.empty(0, 70))
    data[70:] = torch.nan
    out, x = torch.empty(2, 70), inputs(2, 64)
    linears.linear(x, DenseMatrix(data), out)
    assert_close(out, x, data[:70].double(), None)


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    weight, x = DenseMatrix(inputs(70, 1024)), inputs(2, 1024)
    out = torch.empty(2, 70)
    with pytest.raises(KernelError, match="do not fit"):
        linears.linear(x, DenseMatrix(inputs(70, 1000)), out)
    with pytest.raises(KernelError, match="do not fit"):
        linears.linear(x, weight, torch.empty(3, 70))
    with pytest.raises(KernelError, match="do not fit"):
        linears.linear(x, weight, out, bias=torch.zeros(71))
    with pytest.raises(KernelError, match="permitted: bfloat16"):
        linears.linear(x.double(), weight, out)
    with pytest.raises(KernelError, match="permitted: bfloat16"):
        linears.linear(x, weight, torch.empty(70, 2).T)
    with pytest.raises(KernelError, match="need 280 of float32"):
        linears.linear(x, weight, out, scratch=torch.empty(279))
    few = torch.zeros(9, dtype=torch.int32)
    with pytest.raises(KernelError, match="needed: 512 of int32"):
        linears.linear(x, weight, out, scratch=torch.empty(280), counters=few)
    coded = matrix(FORMS["int4"], 48, 70, 1024)
    with pytest.raises(KernelError, match="multiple of 32"):
        linears.linear(x, coded, out)


@given(
    st.integers(1, 5000), st.integers(1, 160_000), st.integers(1, 30_000),
    st.sampled_from([WeightTile(64, 16, 2, 128, 256), WeightTile(256, 4, 2, 64, 64)]),
    st.sampled_from([(7, 5), (8, 9), (8, 0), (9, 0)]),
)  # fmt: skip
def test_every_step_that_is_split_fits_scratch_and_every_tile_a_cards_memory(
    tokens: int, rows: int, cols: int, tile: WeightTile, capability: tuple[int, int]
) -> None:
    card = tiles.card_of_capability(capability)
    tiling = tiles.choose_tiling(tokens, rows, cols, tile, card, may_split=True)
    stage = tiling.block_rows * tile.bits // 8 + tiling.block_tokens * tile.float_bytes
    # Below sm_90 a stage less is kept; sm_75 keeps none.
    kept = {(7, 5): 1, (9, 0): tiling.num_stages}.get(capability, tiling.num_stages - 1)
    assert kept * stage * tile.columns <= card.shared_bytes
    if tiling.apart:
        needed = k_segments(rows, cols) * tokens * rows
        assert needed <= tiles.scratch_floats(tokens, rows, cols)
        assert needed <= tiles.scratch_floats(tokens + 100, rows, cols)
        assert needed < 1 << 31
        programs = -(-rows // tiling.block_rows) * -(-tokens // tiling.block_tokens)
        assert programs <= tiles.NUM_COUNTERS
