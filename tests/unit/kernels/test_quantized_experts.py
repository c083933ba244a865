"""Mixtures of experts in codes: exact integers, one reduction a row, whatever its company."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.unit.kernels.programs import ISAS, Bench, host_tensor
from tests.unit.kernels.quantization import rounded_rows
from tests.unit.kernels.test_experts import (
    ACTIVATIONS,
    GATED,
    Shape,
    arrays_of,
    program_of,
    run,
    softmax_router,
    weights_by,
)

from hearth.core.errors import KernelError
from hearth.core.program import BufferSpec, Experts, Quantize, StepProgram
from hearth.core.spec import DType, QuantSpec
from hearth.core.step import KvConfig, StepLimits
from hearth.kernels.codes import dequantized
from hearth.kernels.cpu.executor import CpuExecutor
from hearth.kernels.cpu.weights import CpuWeights
from hearth.kernels.packing import row_bytes

VOCAB = 50
CODES, GATED_CODES = 5, 6
TOLERANCE = 2e-5  # of the largest output


@dataclass
class Mixture:
    """An executor of one mixture, and the matrices that its codes stand for."""

    executor: CpuExecutor
    gate_up: NDArray[np.float64]  # [experts, 2, size, hidden]
    down: NDArray[np.float64]  # [experts, hidden, size]


def coded_program(shape: Shape, quant: QuantSpec, **changes: Any) -> StepProgram:
    """The program of test_experts with matrices in codes, and rows in int8 where they want them."""
    program = program_of(shape, VOCAB)
    matrices = ("gate_up", "down")
    slots = [replace(s, quant=quant) if s.name in matrices else s for s in program.slots]
    ops, buffers = list(program.ops), list(program.buffers)
    experts = ops.pop()
    assert isinstance(experts, Experts)
    if quant.int8_rows:
        residual = quant.residual_rows
        part = row_bytes(shape.size, quant.group_size, residual=residual) // 4
        buffers += [
            BufferSpec("codes", shape.hidden, group_size=quant.group_size, residual=residual),
            BufferSpec("gated codes", shape.router.top_k * part),
        ]
        ops.append(Quantize(0, CODES))
        experts = replace(experts, x=CODES, gated_codes=GATED_CODES)
    ops.append(replace(experts, **changes))
    return replace(program, slots=tuple(slots), ops=tuple(ops), buffers=tuple(buffers))


def mixture_of(
    program: StepProgram, arrays: dict[str, NDArray[np.float32]], bench: Bench
) -> Mixture:
    weights = CpuWeights(program, isa=bench.isa)
    for slot in program.slots:
        weights.put(slot, 0, host_tensor(arrays[slot.name]))
    limits = StepLimits(bench.max_tokens, 16, bench.max_tokens, 4096)
    kv = KvConfig(16, (), DType.FLOAT32)
    executor = CpuExecutor(program, weights, limits, kv, bench.threads, bench.isa)
    wide = [
        (dequantized(slot, weights.packed(slot)) if slot.quant.bits else arrays[slot.name]).astype(
            np.float64
        )
        for slot in (program.slot("gate_up"), program.slot("down"))
    ]
    count, hidden = program.slot("down").stack, program.slot("down").rows
    gate_up = wide[0].reshape(count, 2, -1, hidden)
    return Mixture(executor, gate_up, wide[1].reshape(count, hidden, -1))


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 12),
    top_k=st.integers(1, 4),
    hidden=st.integers(1, 200),
    size=st.integers(1, 150),
    num_rows=st.integers(1, 120),
    bits=st.sampled_from((4, 8)),
    group=st.sampled_from((32, 64, 128)),
    symmetric=st.booleans(),
    rows=st.sampled_from(("float32", "int8", "residual")),
    is_float=st.booleans(),
    plain=st.sampled_from(("", "gate_up", "down")),
    threads=st.integers(1, 3),
)
def test_a_mixture_equals_the_products_of_what_its_codes_stand_for(
    isa: str,
    count: int,
    top_k: int,
    hidden: int,
    size: int,
    num_rows: int,
    bits: int,
    group: int,
    symmetric: bool,
    rows: str,
    is_float: bool,
    plain: str,
    threads: int,
) -> None:
    shape = Shape(softmax_router(count, min(count, top_k)), hidden, size)
    quant = QuantSpec(DType.FLOAT32, bits, group, symmetric, int8_rows=rows != "float32")
    quant = replace(quant, residual_rows=rows == "residual")
    if is_float:
        quant = QuantSpec(DType.FLOAT32, 8, group, is_float=True)
    arrays = arrays_of(shape, VOCAB, seed=hidden)
    arrays["table"][::2, 0] *= 50
    program = coded_program(shape, quant)
    if is_float and plain:  # a checkpoint may leave one of the two as it is
        slots = [
            replace(slot, quant=QuantSpec(DType.FLOAT32)) if slot.name == plain else slot
            for slot in program.slots
        ]
        program = replace(program, slots=tuple(slots))
    mixture = mixture_of(program, arrays, Bench(threads, isa))
    tokens = np.random.default_rng(size).integers(0, VOCAB, num_rows).tolist()
    out = run(mixture.executor, tokens)
    gated = mixture.executor.read_buffer(GATED, num_rows).reshape(num_rows, -1, size)
    mixture.executor.close()
    check(shape, arrays, tokens, mixture, quant, (gated, out))


def check(
    shape: Shape,
    arrays: dict[str, NDArray[np.float32]],
    tokens: list[int],
    mixture: Mixture,
    quant: QuantSpec,
    got: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> None:
    """Both halves by their definition; the second one begins with what the first one gave."""
    gated, out = got
    x = arrays["table"][tokens]
    wide, residual = x.astype(np.float64), quant.residual_rows
    if quant.int8_rows:
        wide = rounded_rows(x, quant.group_size, residual=residual)
    expected_gated, expected_out = np.zeros(gated.shape), np.zeros(out.shape)
    for t, token in enumerate(tokens):
        logits = arrays["logits"][token].astype(np.float64)
        shares = weights_by(shape.router, logits, np.zeros(shape.router.num_experts))
        parts = gated[t].astype(np.float64)
        if quant.int8_rows:
            parts = rounded_rows(gated[t], quant.group_size, residual=residual)
        for i, (expert, share) in enumerate(sorted(shares.items())):
            gate, up = mixture.gate_up[expert] @ wide[t]
            expected_gated[t, i] = share * ACTIVATIONS[shape.activation](gate) * up
            expected_out[t] += mixture.down[expert] @ parts[i]
    for one, expected in ((gated, expected_gated), (out, expected_out)):
        assert np.abs(one - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", ["float32", "int8", "residual"])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_bits_of_a_row_do_not_depend_on_its_company(isa: str, bits: int, rows: str) -> None:
    """An expert sees one row, a few, and more than a tile."""
    shape = Shape(softmax_router(3, 2), hidden=300, size=270)
    quant = QuantSpec(DType.FLOAT32, bits, 128, True, int8_rows=rows != "float32")
    quant = replace(quant, residual_rows=rows == "residual")
    arrays = arrays_of(shape, VOCAB)
    arrays["table"][::2, 0] *= 300
    tokens = np.random.default_rng(4).integers(0, VOCAB, 200).tolist()
    seen: dict[int, bytes] = {}
    for threads in (1, 3):
        executor = mixture_of(coded_program(shape, quant), arrays, Bench(threads, isa)).executor
        for num_rows in (1, 2, 3, 8, 97, 200):
            for token, row in zip(tokens[:num_rows], run(executor, tokens[:num_rows])):
                assert seen.setdefault(token, row.tobytes()) == row.tobytes()
        executor.close()


def test_a_row_that_is_not_finite_harms_no_other() -> None:
    shape = Shape(softmax_router(5, 2))
    quant = QuantSpec(DType.FLOAT32, 4, 32, int8_rows=True)
    arrays = arrays_of(shape, VOCAB)
    clean = run(mixture_of(coded_program(shape, quant), arrays, Bench()).executor, [1, 7, 2])
    arrays["table"][7] = np.inf
    got = run(mixture_of(coded_program(shape, quant), arrays, Bench()).executor, [1, 7, 2])
    assert np.isnan(got[1]).all()
    assert got[[0, 2]].tobytes() == clean[[0, 2]].tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gated_codes": None}, "not quantized alike"),
        ({"x": 0}, "not quantized alike"),
        ({"gated_codes": GATED}, "do not fit"),
        ({"gated_codes": 99}, "no buffer"),
        ({"gated_codes": CODES}, "do not fit"),
        ({"out": GATED_CODES}, "another shape"),
    ],
)
def test_a_mixture_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    shape = Shape(softmax_router(5, 2))
    quant = QuantSpec(DType.FLOAT32, 4, 32, int8_rows=True)
    with pytest.raises(KernelError, match=message):
        mixture_of(coded_program(shape, quant, **change), arrays_of(shape, VOCAB), Bench())


def test_random_codes_fill_every_expert() -> None:
    shape = Shape(softmax_router(5, 2))
    program = coded_program(shape, QuantSpec(DType.FLOAT32, 4, 32, int8_rows=True))
    weights = CpuWeights(program)
    slot = program.slot("gate_up")
    weights.fill_random(slot, 3)
    experts = dequantized(slot, weights.packed(slot)).reshape(10, -1)
    assert len({expert.tobytes() for expert in experts}) == 10
