"""Weights reach the device as they were put, in pieces, from several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.support.executors import require_cpu_library
from tests.unit.kernels.programs import host_tensor

from hearth.core.errors import KernelError
from hearth.core.program import StepProgram
from hearth.core.spec import DType, QuantSpec, SlotKind, WeightSlot
from hearth.kernels.codes import row_values
from hearth.kernels.cpu.quantize import quantize_rows
from hearth.kernels.packing import CodeRows, HostTensor
from hearth.kernels.reference.quantize import coded_weights, rounded_weights
from hearth.kernels.triton.floats import choose_float
from hearth.kernels.triton.layout import CodedMatrix, DenseMatrix
from hearth.kernels.triton.plain import dequantized
from hearth.kernels.triton.weights import TritonWeights, _reference_rows

CPU = torch.device("cpu")
DENSE = QuantSpec()
QUANTS = {
    "int4": QuantSpec(bits=4, group_size=32),
    "int4 zero points": QuantSpec(bits=4, group_size=32, symmetric=False),
    "int8": QuantSpec(bits=8, group_size=32),
    "int8 zero points": QuantSpec(bits=8, group_size=64, symmetric=False),
    "fp8": QuantSpec(bits=8, group_size=64, is_float=True),
}


def matrix_slot(rows: int, cols: int, quant: QuantSpec = DENSE, stack: int = 1) -> WeightSlot:
    return WeightSlot("w", SlotKind.LINEAR, rows, cols, (), quant, stack=stack)


def weights_of(
    slot: WeightSlot, dtype: DType = DType.FLOAT32, staging_bytes: int = 4096
) -> TritonWeights:
    return TritonWeights(StepProgram((), (), (slot,), (), 1), dtype, CPU, staging_bytes)


def values(rows: int, cols: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, (rows, cols)).astype(np.float32)


def as_stored(array: NDArray[np.float32], dtype: torch.dtype, name: DType) -> HostTensor:
    """Bytes of another float type, read-only as a memory map is."""
    data = torch.from_numpy(array).to(dtype).view(torch.uint8).numpy().reshape(-1).copy()
    data.flags.writeable = False
    return HostTensor(data, name, array.shape)


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16])
@pytest.mark.parametrize(
    "stored",
    [
        (torch.float32, DType.FLOAT32),
        (torch.bfloat16, DType.BFLOAT16),
        (torch.float16, DType.FLOAT16),
    ],
    ids=str,
)
def test_dense_rows_are_rounded_once_and_lie_where_they_belong(
    dtype: DType, stored: tuple[torch.dtype, DType]
) -> None:
    slot, whole = matrix_slot(70, 33), values(70, 33)
    weights = weights_of(slot, dtype, staging_bytes=33 * 4 * 3)
    weights.put(slot, 41, as_stored(whole[41:], *stored))
    weights.put(slot, 0, as_stored(whole[:41], *stored))
    weights.finish()
    matrix = weights.matrix("w")
    assert isinstance(matrix, DenseMatrix)
    expected = torch.from_numpy(whole).to(stored[0]).to(matrix.data.dtype)
    assert torch.equal(matrix.data, expected)


@pytest.mark.parametrize("name", QUANTS)
def test_codes_made_while_loading_are_those_of_the_cpu(name: str) -> None:
    require_cpu_library()
    slot, whole = matrix_slot(37, 100, QUANTS[name]), values(37, 100)
    weights = weights_of(slot, staging_bytes=1000)
    weights.put(slot, 20, host_tensor(whole[20:]))
    weights.put(slot, 0, host_tensor(whole[:20]))
    weights.finish()
    expected = row_values(quantize_rows(slot, host_tensor(whole)), slot.quant)[:, :100]
    matrix = weights.matrix("w")
    assert isinstance(matrix, CodedMatrix)
    assert np.array_equal(dequantized(matrix).numpy(), expected)


@pytest.mark.parametrize("name", QUANTS)
def test_without_the_library_codes_follow_the_reference_rule(name: str) -> None:
    slot, whole = matrix_slot(9, 100, QUANTS[name]), values(9, 100)
    whole[3] = 0.0
    rows = _reference_rows(slot, host_tensor(whole))
    expected = rounded_weights(torch.from_numpy(whole), slot.quant).numpy()
    np.testing.assert_array_equal(row_values(rows, slot.quant)[:, :100], expected)
    whole[5, 5] = np.nan
    with pytest.raises(KernelError, match="not finite"):
        _reference_rows(slot, host_tensor(whole))


def test_the_reference_rule_gives_codes_near_those_of_the_kernels() -> None:
    require_cpu_library()
    whole = values(64, 128)
    for name, quant in QUANTS.items():
        own = coded_weights(torch.from_numpy(whole), quant)
        kernels = quantize_rows(matrix_slot(64, 128, quant), host_tensor(whole))
        assert (own.codes.numpy() != kernels.codes).mean() < 0.01, name


def test_codes_of_a_checkpoint_are_kept_with_their_zero_points() -> None:
    rng = np.random.default_rng(2)
    slot = matrix_slot(6, 70, QUANTS["int4 zero points"], stack=2)
    codes = rng.integers(0, 16, (12, 96)).astype(np.uint8)
    rows = CodeRows(
        codes,
        rng.uniform(0.1, 1, (12, 3)).astype(np.float32),
        rng.integers(0, 16, (12, 3)).astype(np.uint8),
    )
    weights = weights_of(slot, staging_bytes=200)
    with ThreadPoolExecutor(4) as pool:
        futures = [
            pool.submit(
                weights.put_codes,
                slot,
                i,
                CodeRows(codes[i : i + 1], rows.scales[i : i + 1], _row(rows.zeros, i)),
            )
            for i in range(12)
        ]
        for future in futures:
            future.result()
    weights.finish()
    expected = row_values(rows, slot.quant)[:, :70]
    assert np.array_equal(dequantized(weights.matrix("w")).numpy(), expected)


def _row(zeros: NDArray[np.uint8] | None, i: int) -> NDArray[np.uint8]:
    assert zeros is not None
    return zeros[i : i + 1]


def test_many_threads_share_the_two_buffers() -> None:
    slot, whole = matrix_slot(200, 16), values(200, 16)
    weights = weights_of(slot, staging_bytes=256)
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda i: weights.put(slot, i, host_tensor(whole[i : i + 5])), range(0, 200, 5)
            )
        )
    weights.finish()
    assert np.array_equal(dequantized(weights.matrix("w")).numpy(), whole)


def test_what_float16_does_not_hold_is_refused_and_the_buffer_is_free_again() -> None:
    slot = matrix_slot(2, 4)
    weights = weights_of(slot, DType.FLOAT16)
    for _ in range(3):
        with pytest.raises(KernelError, match="beyond 65,504") as raised:
            weights.put(slot, 0, host_tensor(np.full((2, 4), 1e6, np.float32)))
    assert "bfloat16" in str(raised.value.hint)
    weights.put(slot, 0, host_tensor(np.ones((2, 4), np.float32)))


def test_what_does_not_fit_is_refused() -> None:
    slot = matrix_slot(2, 4)
    weights = weights_of(slot)
    for first_row, shape in ((1, (2, 4)), (0, (2, 5)), (0, (3, 4))):
        with pytest.raises(KernelError, match="does not fit"):
            weights.put(slot, first_row, host_tensor(np.zeros(shape, np.float32)))
    with pytest.raises(KernelError, match="no weight slot other"):
        weights.matrix("other")
    weights.finish()
    with pytest.raises(KernelError, match="complete"):
        weights.put(slot, 0, host_tensor(np.zeros((2, 4), np.float32)))


@pytest.mark.parametrize("name", ["dense", *QUANTS])
def test_random_weights_are_reproducible_and_of_a_usable_scale(name: str) -> None:
    slot = matrix_slot(64, 256, QUANTS.get(name, DENSE))
    made = []
    for _ in range(2):
        weights = weights_of(slot, staging_bytes=1 << 20)
        weights.fill_random(slot, seed=3)
        made.append(dequantized(weights.matrix("w")))
    assert torch.equal(*made)
    assert made[0].isfinite().all()
    assert 0.8 < made[0].std() * 16 < 1.25


def test_bfloat16_becomes_float16_on_cards_without_it_and_says_so() -> None:
    assert choose_float(DType.BFLOAT16, (8, 0)).dtype is DType.BFLOAT16
    turing = choose_float(DType.BFLOAT16, (7, 5))
    assert turing.dtype is DType.FLOAT16
    assert "sm_75" in turing.reason
    assert choose_float(DType.FLOAT32, (7, 5)).dtype is DType.FLOAT32
    assert choose_float(DType.BFLOAT16, None).dtype is DType.BFLOAT16
