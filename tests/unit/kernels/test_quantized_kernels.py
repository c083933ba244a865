"""Quantized weights and rows against plain definitions, on every instruction set here."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.contract.plan_builder import Chunk, PlanBuilder, Track
from tests.unit.kernels.programs import ISAS, Bench, host_tensor, slot
from tests.unit.kernels.quantization import rounded_rows

from hearth.core.errors import KernelError
from hearth.core.program import BufferSpec, Embed, Linear, Op, Quantize, StepProgram
from hearth.core.spec import DType, QuantSpec, SlotKind, WeightSlot
from hearth.core.step import KvConfig, StepLimits
from hearth.kernels.codes import dequantized, read_codes
from hearth.kernels.cpu.executor import CpuExecutor
from hearth.kernels.cpu.quantize import quantize_rows
from hearth.kernels.cpu.weights import CpuWeights
from hearth.kernels.packing import CodeRows
from hearth.kernels.reference.quantize import rounded_weights

VOCAB = 61
TOLERANCE = 1e-5  # of the largest output: float32 sums of a few groups


@dataclass(frozen=True)
class Case:
    """One linear layer."""

    hidden: int
    out: int
    quant: QuantSpec
    bias: bool = True


def quant_of(
    bits: int,
    group: int,
    *,
    symmetric: bool = True,
    int8_rows: bool = True,
    wide: bool = False,
    residual: bool = False,
) -> QuantSpec:
    spec = QuantSpec(DType.FLOAT32, bits, group, symmetric, int8_rows, wide)
    return replace(spec, residual_rows=residual and int8_rows)


def fp8_of(group: int, *, wide: bool = False) -> QuantSpec:
    return QuantSpec(DType.FLOAT32, 8, group, wide_scales=wide, is_float=True)


GROUPS = st.sampled_from((32, 64, 96, 128))
QUANTS = st.builds(
    quant_of,
    bits=st.sampled_from((4, 8)),
    group=GROUPS,
    symmetric=st.booleans(),
    int8_rows=st.booleans(),
    wide=st.booleans(),
    residual=st.booleans(),
) | st.builds(fp8_of, group=GROUPS, wide=st.booleans())


def program_of(case: Case) -> StepProgram:
    """Token ids choose rows of a table, which go through one linear layer into the last buffer."""
    weight = WeightSlot("weight", SlotKind.LINEAR, case.out, case.hidden, (), case.quant)
    slots = [slot("table", SlotKind.TABLE, VOCAB, case.hidden), weight]
    bias = "bias" if case.bias else None
    if bias:
        slots.append(slot("bias", SlotKind.VECTOR, case.out))
    buffers = [BufferSpec("x", case.hidden), BufferSpec("y", case.out)]
    ops: list[Op] = [Embed("table", 0)]
    if case.quant.int8_rows:
        quant = case.quant
        buffers.append(
            BufferSpec(
                "codes", case.hidden, group_size=quant.group_size, residual=quant.residual_rows
            )
        )
        ops.append(Quantize(0, 2))
    ops.append(Linear(2 if case.quant.int8_rows else 0, "weight", bias, 1))
    return StepProgram(tuple(buffers), tuple(ops), tuple(slots), (), VOCAB)


@dataclass
class Layer:
    """An executor of one linear layer, and the matrix that its codes stand for."""

    executor: CpuExecutor
    matrix: NDArray[np.float32]

    def run(self, tokens: list[int]) -> NDArray[np.float32]:
        chunk = Chunk(Track(tokens, blocks=[0] * 20), len(tokens))
        self.executor.execute(PlanBuilder(16, 0).plan([chunk]))
        return self.executor.read_buffer(1, len(tokens))


def layer_of(case: Case, arrays: dict[str, NDArray[np.float32]], bench: Bench) -> Layer:
    program = program_of(case)
    weights = CpuWeights(program)
    for one in program.slots:
        weights.put(one, 0, host_tensor(arrays[one.name]))
    matrix = dequantized(program.slots[1], weights.packed(program.slots[1]))
    limits = StepLimits(bench.max_tokens, 16, bench.max_tokens, 4096)
    kv = KvConfig(16, (), DType.FLOAT32)
    return Layer(CpuExecutor(program, weights, limits, kv, bench.threads, bench.isa), matrix)


def arrays_of(case: Case, seed: int, outlier: float = 1.0) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    table = random.normal(0, 1, (VOCAB, case.hidden)).astype(np.float32)
    table[:, 0] *= outlier
    return {
        "table": table,
        "weight": random.normal(0, 0.05, (case.out, case.hidden)).astype(np.float32),
        "bias": random.normal(0, 1, case.out).astype(np.float32),
    }


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40, deadline=None)
@given(
    hidden=st.integers(1, 700),
    out=st.integers(1, 200),
    rows=st.integers(1, 120),
    quant=QUANTS,
    bias=st.booleans(),
    threads=st.integers(1, 2),
    outlier=st.sampled_from((0.0, 1.0, 1e3, 1e-30)),
)
def test_a_quantized_layer_equals_the_product_of_what_its_codes_stand_for(
    isa: str,
    hidden: int,
    out: int,
    rows: int,
    quant: QuantSpec,
    bias: bool,
    threads: int,
    outlier: float,
) -> None:
    case = Case(hidden, out, quant, bias)
    arrays = arrays_of(case, 1, outlier)
    layer = layer_of(case, arrays, Bench(threads=threads, isa=isa))
    tokens = np.random.default_rng(4).integers(0, VOCAB, rows).tolist()
    got = layer.run(tokens)
    layer.executor.close()
    x = arrays["table"][tokens]
    read = x.astype(np.float64)
    if quant.int8_rows:
        read = rounded_rows(x, quant.group_size, residual=quant.residual_rows)
    expected = read @ layer.matrix.T + (arrays["bias"] if bias else 0.0)
    assert np.abs(got - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "quant",
    [quant_of(b, 64, int8_rows=rows) for b in (4, 8) for rows in (True, False)]
    + [fp8_of(64), fp8_of(128, wide=True)],
    ids=lambda quant: quant.name,
)
def test_the_bits_of_a_row_do_not_depend_on_how_many_rows_go_with_it(
    isa: str, quant: QuantSpec
) -> None:
    case = Case(300, 130, quant)
    layer = layer_of(case, arrays_of(case, 2), Bench(threads=2, isa=isa))
    tokens = np.random.default_rng(5).integers(0, VOCAB, 200).tolist()
    together = layer.run(tokens)
    for first, last in ((0, 1), (1, 3), (3, 8), (8, 15), (15, 47), (47, 150), (150, 200)):
        assert np.array_equal(layer.run(tokens[first:last]), together[first:last])
    layer.executor.close()


def with_outliers(array: NDArray[np.float32], size: float) -> NDArray[np.float32]:
    """Of every other row one value in the second group, so that neighbours differ in theirs."""
    changed = array.copy()
    changed[::2, 70] = size
    return changed


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [4, 8])
def test_residuals_beside_a_row_change_none_of_its_bits(isa: str, bits: int) -> None:
    """Alone, in tiles of every size, and where the codes are unpacked for the tiles that follow."""
    case = Case(300, 130, quant_of(bits, 64, residual=True), bias=False)
    arrays = arrays_of(case, 2)
    arrays["table"] = with_outliers(arrays["table"], 300)
    layer = layer_of(case, arrays, Bench(threads=2, isa=isa))
    tokens = np.random.default_rng(5).integers(0, VOCAB, 200).tolist()
    together = layer.run(tokens)
    for first, last in ((0, 1), (1, 3), (3, 8), (8, 15), (15, 47), (47, 150), (150, 200)):
        assert layer.run(tokens[first:last]).tobytes() == together[first:last].tobytes()
    layer.executor.close()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_without_outliers_have_the_bits_that_they_have_without_residuals(
    isa: str, bits: int
) -> None:
    outs = []
    tokens = np.random.default_rng(5).integers(0, VOCAB, 40).tolist()
    for residual in (False, True):
        case = Case(300, 130, quant_of(bits, 64, residual=residual))
        arrays = arrays_of(case, 2)
        arrays["table"] = with_outliers(arrays["table"], 300)
        layer = layer_of(case, arrays, Bench(isa=isa))
        outs.append(layer.run(tokens))
        layer.executor.close()
    has_outlier = np.array(tokens) % 2 == 0
    assert outs[0][~has_outlier].tobytes() == outs[1][~has_outlier].tobytes()
    assert (outs[0][has_outlier] != outs[1][has_outlier]).any(axis=1).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [30.0, 100.0, 1000.0])
def test_an_outlier_costs_its_neighbours_nothing_where_residuals_are_kept(
    isa: str, size: float
) -> None:
    """Its column of the matrix is as small as it is large, as where norms make outliers."""
    errors = {}
    for residual in (False, True):
        case = Case(256, 64, quant_of(8, 128, residual=residual), bias=False)
        arrays = arrays_of(case, 3)
        arrays["table"][:, 5] *= np.float32(size)
        arrays["weight"][:, 5] = 0
        layer = layer_of(case, arrays, Bench(isa=isa))
        tokens = list(range(VOCAB))
        exact = arrays["table"][tokens].astype(np.float64) @ layer.matrix.T
        errors[residual] = np.linalg.norm(layer.run(tokens) - exact) / np.linalg.norm(exact)
        layer.executor.close()
    assert errors[True] < 0.01  # groups without outliers lose 0.6 %, others up to 1 %
    assert errors[False] > 2 * errors[True]


@pytest.mark.parametrize("isa", ISAS)
def test_what_a_row_with_residuals_stands_for_can_be_read(isa: str) -> None:
    case = Case(300, 64, quant_of(4, 128, residual=True))
    arrays = arrays_of(case, 3)
    arrays["table"] = with_outliers(arrays["table"], 1e3)
    layer = layer_of(case, arrays, Bench(isa=isa))
    layer.run([2, 3, 4])
    got = layer.executor.read_buffer(2, 3)
    layer.executor.close()
    expected = rounded_rows(arrays["table"][[2, 3, 4]], 128, residual=True)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-4)
    assert np.abs(got - rounded_rows(arrays["table"][[2, 3, 4]], 128)).max() > 0.1


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_reaches_its_own_row_only(
    isa: str, value: float, residual: bool
) -> None:
    case = Case(256, 64, quant_of(4, 128, residual=residual))
    arrays = arrays_of(case, 3)
    arrays["table"][7, 200] = value
    layer = layer_of(case, arrays, Bench(isa=isa))
    got = layer.run([1, 7, 2])
    layer.executor.close()
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[[0, 2]]).all()


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True), (8, False)])
def test_the_search_loses_less_than_plain_rounding(bits: int, symmetric: bool) -> None:
    quant = quant_of(bits, 128, symmetric=symmetric)
    one = WeightSlot("weight", SlotKind.LINEAR, 100, 512, (), quant)
    weight = np.random.default_rng(6).standard_t(5, (100, 512)).astype(np.float32)
    weight += 0.0 if symmetric else 1.0
    weights = CpuWeights(StepProgram((), (), (one,), (), 1))
    weights.put(one, 0, host_tensor(weight))
    error = float(((dequantized(one, weights.packed(one)) - weight) ** 2).sum())
    assert error <= plain_error(weight, quant) * (0.97 if bits == 4 else 1.01)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scale", [1.0, 1e-37, 1e30])
@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True), (8, False)])
def test_the_reference_rounds_by_the_same_rule(
    bits: int, symmetric: bool, scale: float, isa: str
) -> None:
    """Of scales with equal errors either may win, so few groups differ, and not in their error."""
    quant = quant_of(bits, 64, symmetric=symmetric)
    one = WeightSlot("weight", SlotKind.LINEAR, 100, 500, (), quant)
    weight = np.random.default_rng(6).standard_t(5, (100, 500)).astype(np.float32)
    weight[3] = np.abs(weight[3])
    weight[4, :64] = 0
    weight *= np.float32(scale)
    weights = CpuWeights(StepProgram((), (), (one,), (), 1), isa=isa)
    weights.put(one, 0, host_tensor(weight))
    theirs = dequantized(one, weights.packed(one))
    ours = rounded_weights(torch.from_numpy(weight), quant).numpy()
    assert (ours != theirs).mean() < 0.03
    assert squared_error(ours, weight) == pytest.approx(squared_error(theirs, weight), rel=5e-4)


def squared_error(values: NDArray[np.float32], weight: NDArray[np.float32]) -> float:
    """Of the weight's own squares."""
    exact = weight.astype(np.float64)
    return float(((values - exact) ** 2).sum() / (exact**2).sum())


def plain_error(weight: NDArray[np.float32], quant: QuantSpec) -> float:
    """Squared error of plain round-to-nearest: the whole range of each group, no search."""
    groups = weight.astype(np.float64).reshape(len(weight), -1, quant.group_size)
    if quant.symmetric:
        levels = (1 << quant.bits - 1) - 1
        scale = np.abs(groups).max(axis=2, keepdims=True) / levels
        back = np.clip(np.rint(groups / scale), -levels, levels) * scale
    else:
        low = np.minimum(groups.min(axis=2, keepdims=True), 0)
        scale = (np.maximum(groups.max(axis=2, keepdims=True), 0) - low) / ((1 << quant.bits) - 1)
        back = (np.rint(groups / scale) - np.rint(low / scale) + np.rint(low / scale)) * scale
    return float(((back - groups) ** 2).sum())


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_that_are_codes_already_keep_their_values(bits: int) -> None:
    one = WeightSlot("weight", SlotKind.LINEAR, 70, 256, (), quant_of(bits, 128))
    random = np.random.default_rng(7)
    limit = 7 if bits == 4 else 127
    codes = random.integers(-limit, limit + 1, (70, 256)).astype(np.float32)
    codes[:, ::128] = -8 if bits == 4 else 127
    scales = np.repeat(2.0 ** random.integers(-9, 0, (70, 2)), 128, axis=1)
    weights = CpuWeights(StepProgram((), (), (one,), (), 1))
    weights.put(one, 0, host_tensor((codes * scales).astype(np.float32)))
    assert np.array_equal(dequantized(one, weights.packed(one)), codes * scales)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    one = WeightSlot("weight", SlotKind.LINEAR, 4, 64, (), quant_of(4, 32))
    weights = CpuWeights(StepProgram((), (), (one,), (), 1))
    array = np.zeros((4, 64), np.float32)
    array[2, 40] = value
    with pytest.raises(KernelError, match=r"packed as int4 .*not finite"):
        weights.put(one, 0, host_tensor(array))


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e30])
def test_weights_of_any_size_keep_their_relative_precision(scale: float) -> None:
    one = WeightSlot("weight", SlotKind.LINEAR, 4, 64, (), quant_of(8, 64))
    array = (np.random.default_rng(9).normal(0, 1, (4, 64)) * scale).astype(np.float32)
    weights = CpuWeights(StepProgram((), (), (one,), (), 1))
    weights.put(one, 0, host_tensor(array))
    error = np.abs(dequantized(one, weights.packed(one)) - array).max()
    assert error <= np.abs(array).max() / 127 * 0.51


@pytest.mark.parametrize("kind", [SlotKind.LINEAR, SlotKind.TABLE])
@pytest.mark.parametrize("quant", [quant_of(8, 64), fp8_of(64)], ids=lambda quant: quant.name)
def test_an_embedding_is_read_from_codes_of_8_bits(kind: SlotKind, quant: QuantSpec) -> None:
    table = WeightSlot("table", kind, VOCAB, 200, (), quant)
    program = StepProgram((BufferSpec("x", 200),), (Embed("table", 0, 2.0),), (table,), (), VOCAB)
    weights = CpuWeights(program)
    weights.put(
        table,
        0,
        host_tensor(np.random.default_rng(8).normal(0, 1, (VOCAB, 200)).astype(np.float32)),
    )
    matrix = dequantized(table, weights.packed(table))
    kv = KvConfig(16, (), DType.FLOAT32)
    executor = CpuExecutor(program, weights, StepLimits(8, 8, 8, 64), kv, 1)
    chunk = Chunk(Track([5, 60, 0], blocks=[0]), 3)
    executor.execute(PlanBuilder(16, 0).plan([chunk]))
    got = executor.read_buffer(0, 3)
    executor.close()
    np.testing.assert_array_equal(got, (2 * matrix[[5, 60, 0]]).astype(np.float32))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", [SlotKind.LINEAR, SlotKind.TABLE])
def test_random_codes_have_the_spread_of_random_weights(bits: int, kind: SlotKind) -> None:
    if kind is SlotKind.TABLE and bits == 4:
        return  # tables have 8 bits
    one = WeightSlot("weight", kind, 128, 512, (), quant_of(bits, 128))
    weights = CpuWeights(StepProgram((), (), (one,), (), 1))
    weights.fill_random(one, 3)
    deviation = dequantized(one, weights.packed(one)).std() * 512**0.5
    assert 0.9 < deviation < 1.2
    codes = read_codes(one, weights.packed(one)).codes
    assert len(np.unique(codes)) == 1 << bits


def code_rows(slot: WeightSlot, seed: int) -> CodeRows:
    """Any codes, scales of any size, zero points where the slot has some."""
    random = np.random.default_rng(seed)
    quant, groups = slot.quant, -(-slot.cols // slot.quant.group_size)
    codes = random.integers(0, 1 << quant.bits, (slot.total_rows, groups * quant.group_size))
    if quant.is_float:
        codes = np.where(codes & 127 == 127, 1, codes)
    scales = np.exp(random.normal(-4, 5, (slot.total_rows, groups))).astype(np.float32)
    if not quant.wide_scales:
        scales = (scales.view(np.uint32) & 0xFFFF0000).view(np.float32)
    zeros = random.integers(0, 1 << quant.bits, scales.shape).astype(np.uint8)
    return CodeRows(codes.astype(np.uint8), scales, None if quant.symmetric else zeros)


@settings(max_examples=60, deadline=None)
@given(
    quant=QUANTS,
    cols=st.integers(1, 300),
    rows=st.integers(1, 150),
    stack=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_codes_are_packed_as_they_are_in_any_pieces(
    quant: QuantSpec, cols: int, rows: int, stack: int, seed: int
) -> None:
    one = WeightSlot("weight", SlotKind.LINEAR, rows, cols, (), quant, stack=stack)
    given_rows = code_rows(one, seed)
    weights = CpuWeights(StepProgram((), (), (one,), (), VOCAB))
    split = np.random.default_rng(seed).integers(0, rows * stack + 1)
    for first, last in ((0, split), (split, rows * stack)):
        zeros = None if given_rows.zeros is None else given_rows.zeros[first:last]
        part = CodeRows(given_rows.codes[first:last], given_rows.scales[first:last], zeros)
        weights.put_codes(one, int(first), part)
    found = read_codes(one, weights.packed(one))
    assert np.array_equal(found.codes, given_rows.codes[:, :cols])
    assert np.array_equal(found.scales, given_rows.scales)
    if given_rows.zeros is not None:
        assert np.array_equal(found.zeros, given_rows.zeros)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_quantizing_alone_gives_the_codes_of_packing(bits: int, symmetric: bool) -> None:
    quant = quant_of(bits, 64, symmetric=symmetric)
    one = WeightSlot("weight", SlotKind.LINEAR, 70, 192, (), quant)
    tensor = host_tensor(arrays_of(Case(192, 70, quant), 5)["weight"])
    weights = CpuWeights(StepProgram((), (), (one,), (), VOCAB))
    weights.put(one, 0, tensor)
    packed = read_codes(one, weights.packed(one))
    alone = quantize_rows(one, tensor)
    assert np.array_equal(alone.codes, packed.codes)
    assert np.array_equal(alone.scales, packed.scales)
    assert (alone.zeros is None) == symmetric
    assert alone.zeros is None or np.array_equal(alone.zeros, packed.zeros)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [1, 7, 40, 120])
@pytest.mark.parametrize("bits", [4, 8])
def test_wide_scales_change_no_bit_where_bfloat16_holds_them(
    isa: str, rows: int, bits: int
) -> None:
    tokens = [int(t) for t in np.random.default_rng(rows).integers(0, VOCAB, rows)]
    results = []
    for wide in (False, True):
        case = Case(320, 130, quant_of(bits, 64, symmetric=False, wide=wide))
        layer = layer_of(case, arrays_of(case, 3), Bench(2, isa, 128))
        results.append(layer.run(tokens))
        layer.executor.close()
    assert np.array_equal(results[0], results[1])


@pytest.mark.parametrize("what", ["scale", "code", "zeros", "shape"])
def test_codes_that_do_not_fit_are_refused(what: str) -> None:
    one = WeightSlot("weight", SlotKind.LINEAR, 8, 64, (), quant_of(4, 64))
    rows = code_rows(one, 0)
    if what == "scale":
        rows.scales[3, 0] = np.inf
    elif what == "code":
        rows.codes[2, 7] = 16
    elif what == "zeros":
        rows = CodeRows(rows.codes, rows.scales, np.zeros_like(rows.scales, np.uint8))
    else:
        rows = CodeRows(rows.codes[:, :32], rows.scales)
    weights = CpuWeights(StepProgram((), (), (one,), (), VOCAB))
    with pytest.raises(KernelError):
        weights.put_codes(one, 0, rows)
