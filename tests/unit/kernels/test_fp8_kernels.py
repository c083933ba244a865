"""FP8 weights on every instruction set here: exact numbers, and what rounding makes of floats.

Layers of any shape are `test_quantized_kernels`', which has FP8 among its forms.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.unit.kernels.programs import ISAS, host_tensor
from tests.unit.kernels.test_quantized_kernels import (
    VOCAB,
    Case,
    Layer,
    code_rows,
    fp8_of,
    program_of,
    squared_error,
)

from hearth.core.errors import KernelError
from hearth.core.program import StepProgram
from hearth.core.spec import DType, SlotKind, WeightSlot
from hearth.core.step import KvConfig, StepLimits
from hearth.kernels.codes import dequantized
from hearth.kernels.cpu.executor import CpuExecutor
from hearth.kernels.cpu.weights import CpuWeights
from hearth.kernels.e4m3 import e4m3_values
from hearth.kernels.packing import CodeRows
from hearth.kernels.reference.quantize import rounded_weights


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [1, 2, 3, 40])
@pytest.mark.parametrize("wide", [False, True])
def test_every_fp8_number_is_multiplied_exactly(isa: str, rows: int, wide: bool) -> None:
    """Each code that is a number, by rows of one value that is not zero; signs of zero too."""
    codes = np.array([c for c in range(256) if c & 127 != 127], np.uint8)
    program = program_of(Case(37, 254, fp8_of(32, wide=wide), bias=False))
    weights = CpuWeights(program, isa=isa)
    table = np.zeros((VOCAB, 37), np.float32)
    table[np.arange(37), np.arange(37)] = np.float32(1.75)
    weights.put(program.slots[0], 0, host_tensor(table))
    scale = np.float32(1.2345678) if wide else np.float32(1.25)
    columns = np.zeros((254, 64), np.uint8)
    columns[:, :37] = codes[:, None]
    weights.put_codes(program.slots[1], 0, CodeRows(columns, np.full((254, 2), scale, np.float32)))
    kv = KvConfig(16, (), DType.FLOAT32)
    executor = CpuExecutor(program, weights, StepLimits(64, 16, 64, 4096), kv, 1, isa)
    tokens = [(5 * i) % 37 for i in range(rows)]
    got = Layer(executor, table).run(tokens)
    executor.close()
    expected = e4m3_values()[codes] * np.float32(1.75) * scale
    assert np.array_equal(got, np.tile(expected, (rows, 1)))
    assert np.array_equal(got[0, codes == 1], [np.float32(2**-9 * 1.75) * scale])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scale", [1.0, 1e-37, 1e30])
def test_the_reference_rounds_to_the_same_fp8_numbers(scale: float, isa: str) -> None:
    one = WeightSlot("weight", SlotKind.LINEAR, 100, 500, (), fp8_of(64))
    weight = np.random.default_rng(6).standard_t(2, (100, 500)).astype(np.float32)
    weight[4, :64] = 0
    weight *= np.float32(scale)
    weights = CpuWeights(StepProgram((), (), (one,), (), 1), isa=isa)
    weights.put(one, 0, host_tensor(weight))
    theirs = dequantized(one, weights.packed(one))
    assert np.array_equal(rounded_weights(torch.from_numpy(weight), one.quant).numpy(), theirs)
    assert squared_error(theirs, weight) < 1e-3 or scale < 1e-35  # below it a group is zero


@pytest.mark.parametrize("kind", [SlotKind.LINEAR, SlotKind.TABLE])
def test_random_fp8_codes_are_numbers_with_the_spread_of_random_weights(kind: SlotKind) -> None:
    one = WeightSlot("weight", kind, 128, 512, (), fp8_of(128))
    weights = CpuWeights(StepProgram((), (), (one,), (), 1))
    weights.fill_random(one, 3)
    values = dequantized(one, weights.packed(one))
    assert 0.9 < values.std() * 512**0.5 < 1.2
    assert len(np.unique(values)) > 60


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_fp8_codes_that_are_no_number_are_refused(code: int) -> None:
    one = WeightSlot("weight", SlotKind.LINEAR, 8, 64, (), fp8_of(64))
    rows = code_rows(one, 0)
    rows.codes[5, 63] = code
    weights = CpuWeights(StepProgram((), (), (one,), (), VOCAB))
    with pytest.raises(KernelError, match=r"fp8 .*not finite"):
        weights.put_codes(one, 0, rows)
