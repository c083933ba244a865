"""Rows that are written into a buffer are what the next operations read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.support.executors import require_cpu_library

from hearth.cli.settings import BUILT_IN_DIR
from hearth.core.errors import KernelError
from hearth.core.program import Linear, Quantize
from hearth.core.step import KvConfig, StepLimits
from hearth.engine.canary_weights import Product, fixed_rows, products_of, run_product
from hearth.kernels.cpu.executor import CpuExecutor, Tiling
from hearth.kernels.cpu.weights import CpuWeights
from hearth.models.loader import load_model_spec
from hearth.models.weights import load_weights

MODEL: Path = BUILT_IN_DIR


@pytest.fixture(params=["none", "int4"])
def executor(request: pytest.FixtureRequest) -> Iterator[CpuExecutor]:
    require_cpu_library()
    loaded = load_model_spec(MODEL, quantize=request.param)
    weights = CpuWeights(loaded.program)
    load_weights(loaded, weights)
    kv = KvConfig(16, (1,), "float32")
    limits = StepLimits(8, 1, 8, 16)
    made = CpuExecutor(loaded.program, weights, limits, kv, 1, tiling=Tiling(frozenset()))
    yield made
    made.close()


def product_of(executor: CpuExecutor) -> Product:
    return products_of(executor.program)[0]


def test_what_is_written_is_read_and_multiplied(executor: CpuExecutor) -> None:
    product = product_of(executor)
    width = executor.program.slot(product.linear.weight).cols
    x = fixed_rows(3, width)
    bias = run_product(executor, product, 0 * x)
    one = run_product(executor, product, x) - bias
    many = run_product(executor, product, 2 * x) - bias
    assert np.abs(one).max() > 0
    np.testing.assert_allclose(many, 2 * one, rtol=1e-4, atol=1e-4)
    buffer = product.linear.x
    if product.rounding is not None:
        rounding = executor.program.ops[product.rounding]
        assert isinstance(rounding, Quantize)
        buffer = rounding.x
    np.testing.assert_array_equal(executor.read_buffer(buffer, 3), 2 * x)


def test_what_does_not_fit_is_refused(executor: CpuExecutor) -> None:
    first = product_of(executor)
    width = executor.program.buffers[first.linear.out].width
    with pytest.raises(KernelError, match="do not fit a buffer"):
        executor.write_buffer(first.linear.out, np.zeros((1, width + 1), np.float32))
    with pytest.raises(KernelError, match="no so many rows"):
        executor.write_buffer(first.linear.out, np.zeros((9, width), np.float32))
    codes = [i for i, b in enumerate(executor.program.buffers) if b.group_size]
    for index in codes:
        shape = (1, executor.program.buffers[index].width)
        with pytest.raises(KernelError, match="rows of codes cannot be written"):
            executor.write_buffer(index, np.zeros(shape, np.float32))


def test_fixed_rows_are_always_the_same_and_of_variance_one() -> None:
    rows = fixed_rows(4, 4096)
    np.testing.assert_array_equal(rows, fixed_rows(4, 4096))
    assert rows.shape == (4, 4096)
    assert abs(float(rows.mean())) < 0.02
    assert abs(float(rows.var()) - 1) < 0.02
    assert np.abs(rows).max() <= np.float32(3**0.5)


def test_a_layer_knows_what_rounds_its_rows(executor: CpuExecutor) -> None:
    program = executor.program
    for product in products_of(program):
        is_coded = program.slot(product.linear.weight).quant.int8_rows
        assert (product.rounding is not None) == is_coded
        assert isinstance(program.ops[product.at], Linear)
