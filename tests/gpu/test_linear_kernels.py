"""Linear layers and row kernels on a card: against float64, and bit for bit against themselves.

Run alone (`pytest -m gpu tests/gpu`): where another test has chosen Triton's interpreter in the
same process, these are skipped.
"""

from __future__ import annotations

import os

import pytest
import torch
from tests.unit.kernels.triton.matrices import FORMS, exact, matrix
from torch import Tensor

from hearth.core.spec import Activation
from hearth.kernels.triton.layout import CodedMatrix, DenseMatrix, Matrix, k_segments

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="Triton's interpreter is chosen"),
]

SHAPES = ((4608, 4096), (4096, 1376), (100, 520), (27_392, 1024))
TOKENS = (1, 3, 16, 17, 32, 64, 70, 128, 200, 600)


def float_type() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def inputs(tokens: int, cols: int) -> Tensor:
    return torch.randn(tokens, cols, device="cuda").to(float_type())


def on_card(weight: CodedMatrix) -> CodedMatrix:
    zeros = None if weight.zeros is None else weight.zeros.cuda()
    return CodedMatrix(
        weight.codes.cuda(), weight.scales.cuda(), zeros, weight.bits, weight.group_size,
        weight.cols, weight.is_float,
    )  # fmt: skip


def weight_of(name: str, rows: int, cols: int) -> tuple[Matrix, Tensor]:
    """A weight on the card, and what it stands for."""
    if name == "dense":
        data = torch.randn(rows, cols, device="cuda").to(float_type())
        return DenseMatrix(data), data.double()
    plain = matrix(FORMS[name], 32 if "zeros" in name else 128, rows, cols)
    return on_card(plain), exact(plain, rows).cuda()


class Runner:
    """Linear layers with scratch and counters that one launch after the other uses."""

    def __init__(self, rows: int, cols: int) -> None:
        from hearth.kernels.triton import tiles

        self.scratch = torch.empty(tiles.scratch_floats(1024, rows, cols), device="cuda")
        self.counters = torch.zeros(tiles.NUM_COUNTERS, dtype=torch.int32, device="cuda")
        self.rows = rows

    def __call__(self, x: Tensor, weight: Matrix, *, way: str = "counted") -> Tensor:
        from hearth.kernels.triton.linear import linear

        out = torch.full((len(x), self.rows), torch.nan, device="cuda")
        scratch = None if way == "joined" else self.scratch
        counters = self.counters if way == "counted" else None
        linear(x, weight, out, scratch=scratch, counters=counters)
        return out


@pytest.mark.parametrize("name", ["dense", *FORMS])
@pytest.mark.parametrize("shape", SHAPES)
def test_linear_loses_no_more_than_float32_sums(name: str, shape: tuple[int, int]) -> None:
    weight, values = weight_of(name, *shape)
    run = Runner(*shape)
    for tokens in TOKENS:
        x = inputs(tokens, shape[1])
        error = (run(x, weight).double() - x.double() @ values.T).abs()
        size = x.double().abs() @ values.abs().T
        # A card's matrix instruction adds the products of a k = 16 with fewer bits than float32.
        assert (error <= 2e-5 * size + 1e-6).all()


@pytest.mark.parametrize("name", ["dense", *FORMS])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_has_the_same_bits_whatever_the_number_of_rows(
    name: str, shape: tuple[int, int]
) -> None:
    weight, _ = weight_of(name, *shape)
    run, x = Runner(*shape), inputs(600, shape[1])
    whole = run(x, weight, way="joined")
    for tokens in TOKENS:
        for way in ("counted", "apart", "joined"):
            assert torch.equal(run(x[:tokens], weight, way=way), whole[:tokens]), (tokens, way)


def test_counted_segments_are_right_a_thousand_times_over_and_counters_zero() -> None:
    """A part that is read before it was stored would show sooner or later."""
    rows, cols = 4096, 4096
    assert k_segments(rows, cols) > 1
    weight, _ = weight_of("int4", rows, cols)
    run, x = Runner(rows, cols), inputs(1, cols)
    expected = run(x, weight, way="joined")
    for _ in range(1000):
        run.scratch.fill_(torch.nan)
        assert torch.equal(run(x, weight), expected)
    assert not run.counters.any()


def test_a_captured_graph_gives_the_same_bits() -> None:
    rows, cols = 4608, 4096
    weight, _ = weight_of("int4", rows, cols)
    run, x = Runner(rows, cols), inputs(8, cols)
    expected = run(x, weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(x, weight)
    for _ in range(20):
        graph.replay()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("width", [128, 4096, 5120])
def test_norm_and_gate_are_torchs_and_do_not_depend_on_other_rows(width: int) -> None:
    from hearth.kernels.triton import rows

    x = torch.randn(33, width, device="cuda")
    add, weight = torch.randn_like(x).to(float_type()), torch.rand(width, device="cuda")
    total = x + add.float()
    out, alone = torch.empty_like(x), torch.empty_like(x[:1])
    rows.norm(x[5:6].clone(), weight, 1e-6, alone, add=add[5:6])
    rows.norm(x, weight, 1e-6, out, add=add)
    assert torch.equal(x, total)
    assert torch.equal(out[5], alone[0])
    exactly = total.double() * (total.double().pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
    torch.testing.assert_close(out.double(), exactly * weight.double(), rtol=3e-6, atol=1e-6)
    wide = torch.randn(33, 2 * width, device="cuda")
    for activation in Activation:
        rows.gate(wide, out, activation)
        assert torch.isfinite(out).all()
    rows.gate(wide, out, Activation.SILU)
    left, right = wide.double().chunk(2, dim=-1)
    expected = torch.nn.functional.silu(left) * right
    torch.testing.assert_close(out.double(), expected, rtol=3e-6, atol=1e-6)
