"""Head norms, activations and soft caps in C++ against float64, on every instruction set here."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.contract.plan_builder import Chunk, PlanBuilder, Track
from tests.unit.kernels.programs import ISAS, Bench, build, slot

from hearth.core.errors import KernelError
from hearth.core.program import BufferSpec, Embed, Gate, HeadNorm, Op, SoftCap, StepProgram
from hearth.core.spec import Activation, SlotKind

ROWS = 21
Rows = NDArray[np.float32]


def run(
    ops: tuple[Op, ...], widths: tuple[int, ...], arrays: dict[str, Rows], bench: Bench
) -> Rows:
    """Row i of `arrays["table"]` in buffer 0, then the operations; gives the last buffer."""
    slots = [slot("table", SlotKind.TABLE, *arrays["table"].shape)]
    slots += [slot(n, SlotKind.VECTOR, len(a)) for n, a in arrays.items() if n != "table"]
    buffers = tuple(BufferSpec(f"b{i}", width) for i, width in enumerate(widths))
    program = StepProgram(buffers, (Embed("table", 0), *ops), tuple(slots), (), ROWS)
    executor = build(program, arrays, bench)
    track = Track(list(range(ROWS)), blocks=[0, 0])
    executor.execute(PlanBuilder(16, 0).plan([Chunk(track, ROWS)]))
    rows = executor.read_buffer(len(widths) - 1, ROWS)
    executor.close()
    return rows


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=25, deadline=None)
@given(
    heads=st.integers(1, 7),
    kv_heads=st.integers(1, 3),
    head_dim=st.integers(2, 140),
    threads=st.integers(1, 3),
)
def test_head_norms_touch_query_and_key_heads_only(
    isa: str, heads: int, kv_heads: int, head_dim: int, threads: int
) -> None:
    random = np.random.default_rng(head_dim)
    width = (heads + 2 * kv_heads) * head_dim
    arrays: dict[str, Rows] = {
        "table": random.normal(0, 2, (ROWS, width)).astype(np.float32),
        "q": random.normal(1, 1, head_dim).astype(np.float32),
        "k": random.normal(1, 1, head_dim).astype(np.float32),
    }
    op = HeadNorm(0, "q", "k", 1e-5, heads, kv_heads, head_dim)
    got = run((op,), (width,), arrays, Bench(isa=isa, threads=threads))
    x = arrays["table"].astype(np.float64).reshape(ROWS, -1, head_dim)
    normed = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5)
    expected = x.copy()
    expected[:, :heads] = normed[:, :heads] * arrays["q"]
    expected[:, heads : heads + kv_heads] = normed[:, heads : heads + kv_heads] * arrays["k"]
    got = got.reshape(ROWS, -1, head_dim)
    assert np.abs(got - expected).max() < 1e-5
    values = slice(heads + kv_heads, None)
    assert (
        got[:, values].tobytes() == arrays["table"].reshape(ROWS, -1, head_dim)[:, values].tobytes()
    )


def silu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = x / (1 + np.exp(-x))
    return result


def gelu_tanh(x: NDArray[np.float64]) -> NDArray[np.float64]:
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    result: NDArray[np.float64] = 0.5 * x * (1 + np.tanh(inner))
    return result


def gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = 0.5 * x * np.vectorize(math.erfc)(-x / np.sqrt(2))
    return result


def quick_gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = x / (1 + np.exp(-1.702 * x))
    return result


DEFINITIONS = {
    Activation.SILU: silu,
    Activation.GELU_TANH: gelu_tanh,
    Activation.GELU: gelu,
    Activation.QUICK_GELU: quick_gelu,
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [1, 15, 64, 77])
@pytest.mark.parametrize(("activation", "definition"), DEFINITIONS.items())
def test_gates_follow_their_definition(
    isa: str,
    width: int,
    activation: Activation,
    definition: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> None:
    random = np.random.default_rng(width)
    table = random.normal(0, 4, (ROWS, 2 * width)).astype(np.float32)
    table[0, :width] = 30.0
    table[1, :width] = -30.0
    got = run((Gate(0, activation, 1),), (2 * width, width), {"table": table}, Bench(isa=isa))
    wide = table.astype(np.float64)
    expected = definition(wide[:, :width]) * wide[:, width:]
    assert (np.abs(got - expected) <= 1e-6 * np.abs(expected) + 1e-7).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cap", [0.5, 30.0])
def test_a_soft_cap_is_a_scaled_tanh_at_every_size(isa: str, cap: float) -> None:
    sizes = np.geomspace(1e-8, 1e4, ROWS * 50) * cap
    signs = np.where(np.arange(sizes.size) % 2, 1, -1)
    table = (sizes * signs).astype(np.float32).reshape(ROWS, 50)
    table[3, 7], table[4, 9] = 0.0, np.nan
    got = run((SoftCap(0, cap),), (50,), {"table": table}, Bench(isa=isa))
    expected = np.tanh(table.astype(np.float64) / cap) * cap
    is_nan = np.isnan(table)
    assert np.isnan(got[is_nan]).all()
    assert (np.abs(got - expected) <= 5e-7 * np.abs(expected))[~is_nan].all()
    assert np.abs(got[~is_nan]).max() <= cap


def test_a_soft_cap_of_nothing_is_refused() -> None:
    table = np.zeros((ROWS, 8), np.float32)
    with pytest.raises(KernelError, match="soft cap"):
        run((SoftCap(0, 0.0),), (8,), {"table": table}, Bench())
