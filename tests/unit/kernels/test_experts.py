"""Mixtures of experts in C++ against a plain definition in float64, at odd shapes and routings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.contract.plan_builder import Chunk, PlanBuilder, Track
from tests.unit.kernels.programs import (
    ISAS,
    Bench,
    build,
    host_tensor,
    slot,
    to_bfloat16,
)

from hearth.core.errors import KernelError
from hearth.core.program import BufferSpec, Embed, Experts, StepProgram
from hearth.core.spec import Activation, DType, RouterScoring, RouterSpec, SlotKind
from hearth.kernels.cpu.executor import CpuExecutor
from hearth.kernels.cpu.weights import CpuWeights

Rows = NDArray[np.float32]
Wide = NDArray[np.float64]

ROUTES, GATED, OUT = 2, 3, 4
TOLERANCE = 2e-5  # relative to the largest output; float32 sums of some hundreds of terms


@dataclass(frozen=True)
class Shape:
    """A mixture of experts without its weights."""

    router: RouterSpec
    hidden: int = 40
    size: int = 24
    activation: Activation = Activation.SILU
    dtype: DType = DType.FLOAT32


def softmax_router(num_experts: int, top_k: int, *, normalize: bool = True) -> RouterSpec:
    return RouterSpec(num_experts, top_k, RouterScoring.SOFTMAX, normalize)


def program_of(shape: Shape, vocab: int, **changes: Any) -> StepProgram:
    """Token ids choose rows and router logits; the last buffer takes the mixture."""
    router, hidden, size = shape.router, shape.hidden, shape.size
    slots = [
        slot("table", SlotKind.TABLE, vocab, hidden),
        slot("logits", SlotKind.TABLE, vocab, router.num_experts),
        replace(
            slot("gate_up", SlotKind.LINEAR, size, hidden, shape.dtype),
            stack=2 * router.num_experts,
        ),
        replace(slot("down", SlotKind.LINEAR, hidden, size, shape.dtype), stack=router.num_experts),
    ]
    if router.bias is not None:
        slots.append(slot(router.bias, SlotKind.VECTOR, router.num_experts))
    widths = (hidden, router.num_experts, 2 * router.top_k, router.top_k * size, hidden)
    buffers = tuple(BufferSpec(f"b{i}", width) for i, width in enumerate(widths))
    op = Experts(0, 1, ROUTES, GATED, OUT, router, "gate_up", "down", size, shape.activation)
    ops = (Embed("table", 0), Embed("logits", 1), replace(op, **changes))
    return StepProgram(buffers, ops, tuple(slots), (), vocab)


def arrays_of(shape: Shape, vocab: int, seed: int = 0) -> dict[str, Rows]:
    """Random weights and rows; the logits of a row are all different."""
    random = np.random.default_rng(seed)
    count, hidden, size = shape.router.num_experts, shape.hidden, shape.size
    order = np.argsort(random.random((vocab, count)), axis=1)
    arrays = {
        "table": random.normal(0, 1, (vocab, hidden)),
        "logits": order * (6.0 / count) - 3.0,
        "gate_up": random.normal(0, hidden**-0.5, (2 * count * size, hidden)),
        "down": random.normal(0, size**-0.5, (count * hidden, size)),
        "bias": random.normal(0, 0.3, count),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def run(executor: CpuExecutor, tokens: list[int]) -> Rows:
    """The mixture of some rows."""
    blocks = [0] * (len(tokens) // 16 + 1)
    executor.execute(PlanBuilder(16, 0).plan([Chunk(Track(tokens, blocks=blocks), len(tokens))]))
    return executor.read_buffer(OUT, len(tokens))


def chosen_by(router: RouterSpec, scores: Wide, ranks: Wide) -> list[int]:
    """The experts of one row: a stable descending sort, so that of equals the first one wins."""
    if router.num_groups > 1:
        groups = ranks.reshape(router.num_groups, -1)
        of_groups = np.sort(groups, axis=1)[:, -2:].sum(axis=1)
        best = np.argsort(-of_groups, kind="stable")[: router.top_groups]
        masked = np.full_like(groups, -np.inf)
        masked[best] = groups[best]
        ranks = masked.reshape(-1)
    return sorted(np.argsort(-ranks, kind="stable")[: router.top_k].tolist())


def weights_by(router: RouterSpec, logits: Wide, bias: Wide) -> dict[int, float]:
    """The definition: expert → weight, of one row."""
    if router.scoring is RouterScoring.SOFTMAX:
        scores = np.exp(logits - logits.max())
        scores /= scores.sum()
    else:
        scores = 1 / (1 + np.exp(-logits))
    ranks = scores + bias if router.bias is not None else scores
    chosen = chosen_by(router, scores, ranks)
    total = scores[chosen].sum() if router.normalize else 1.0
    return {e: float(scores[e] / total * router.scale) for e in chosen}


ACTIVATIONS: dict[Activation, Callable[[Wide], Wide]] = {
    Activation.SILU: lambda x: np.asarray(x / (1 + np.exp(-x))),
    Activation.GELU_TANH: lambda x: np.asarray(
        0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    ),
    Activation.GELU: lambda x: np.asarray(0.5 * x * np.vectorize(math.erfc)(-x / np.sqrt(2))),
    Activation.QUICK_GELU: lambda x: np.asarray(x / (1 + np.exp(-1.702 * x))),
}


def definition(shape: Shape, arrays: dict[str, Rows], token: int) -> Wide:
    """What the mixture makes of one row."""
    router, hidden, size = shape.router, shape.hidden, shape.size
    stored = {n: to_bfloat16(a) if shape.dtype is DType.BFLOAT16 else a for n, a in arrays.items()}
    gate_up = stored["gate_up"].astype(np.float64).reshape(router.num_experts, 2, size, hidden)
    down = stored["down"].astype(np.float64).reshape(router.num_experts, hidden, size)
    x = arrays["table"][token].astype(np.float64)
    weights = weights_by(
        router, arrays["logits"][token].astype(np.float64), arrays["bias"].astype(np.float64)
    )
    out = np.zeros(hidden)
    for expert, weight in weights.items():
        gate, up = gate_up[expert] @ x
        out += weight * (down[expert] @ (ACTIVATIONS[shape.activation](gate) * up))
    return out


def check(shape: Shape, arrays: dict[str, Rows], tokens: list[int], got: Rows) -> None:
    wanted = {token: definition(shape, arrays, token) for token in set(tokens)}
    expected = np.stack([wanted[token] for token in tokens])
    assert np.abs(got - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max())


@st.composite
def routers(draw: st.DrawFn) -> RouterSpec:
    num_groups = draw(st.sampled_from((1, 1, 2, 3)))
    group_size = draw(st.integers(1 if num_groups == 1 else 2, 20))
    top_groups = draw(st.integers(1, num_groups))
    return RouterSpec(
        num_experts=num_groups * group_size,
        top_k=draw(st.integers(1, top_groups * group_size)),
        scoring=draw(st.sampled_from(RouterScoring)),
        normalize=draw(st.booleans()),
        scale=draw(st.sampled_from((1.0, 2.5))),
        bias=draw(st.sampled_from((None, "bias"))),
        num_groups=num_groups,
        top_groups=top_groups,
    )


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=25, deadline=None)
@given(
    router=routers(),
    hidden=st.integers(1, 200),
    size=st.integers(1, 150),
    num_rows=st.integers(1, 40),
    dtype=st.sampled_from((DType.FLOAT32, DType.BFLOAT16)),
    activation=st.sampled_from(Activation),
    threads=st.integers(1, 3),
)
def test_a_mixture_equals_its_definition_at_any_shape(
    isa: str,
    router: RouterSpec,
    hidden: int,
    size: int,
    num_rows: int,
    dtype: DType,
    activation: Activation,
    threads: int,
) -> None:
    shape = Shape(router, hidden, size, activation, dtype)
    arrays = arrays_of(shape, 50, seed=hidden)
    executor = build(program_of(shape, 50), arrays, Bench(threads, isa))
    tokens = np.random.default_rng(size).integers(0, 50, num_rows).tolist()
    got = run(executor, tokens)
    executor.close()
    check(shape, arrays, tokens, got)


@pytest.mark.parametrize("isa", ISAS)
def test_experts_without_rows_are_not_touched(isa: str) -> None:
    """All rows go to one expert, more of them than a tile takes; the others' weights are NaN."""
    shape = Shape(softmax_router(5, 1))
    arrays = arrays_of(shape, 220)
    arrays["logits"][:, 3] = 9.0
    others = [e for e in range(5) if e != 3]
    arrays["gate_up"].reshape(5, -1)[others] = np.nan
    arrays["down"].reshape(5, -1)[others] = np.nan
    executor = build(program_of(shape, 220), arrays, Bench(2, isa))
    tokens = list(range(220))
    got = run(executor, tokens)
    assert np.isfinite(got).all()
    check(shape, arrays, tokens, got)
    executor.close()


@pytest.mark.parametrize("isa", ISAS)
def test_every_expert_may_serve_every_row(isa: str) -> None:
    shape = Shape(softmax_router(7, 7, normalize=False))
    arrays = arrays_of(shape, 30)
    executor = build(program_of(shape, 30), arrays, Bench(2, isa))
    check(shape, arrays, list(range(30)), run(executor, list(range(30))))
    routes = executor.read_buffer(ROUTES, 30)
    assert (routes[:, :7] == np.arange(7)).all()
    assert np.abs(routes[:, 7:].sum(axis=1) - 1).max() < 1e-6
    executor.close()


def test_of_equal_experts_those_with_the_lower_index_are_chosen() -> None:
    shape = Shape(softmax_router(9, 4))
    arrays = arrays_of(shape, 3)
    arrays["logits"][0] = 1.0
    arrays["logits"][1] = [0, 2, 1, 1, 2, 1, 0, 1, 2]
    arrays["logits"][2] = [-1, -1, -1, -1, -1, 5, -1, -1, -1]
    executor = build(program_of(shape, 3), arrays, Bench())
    run(executor, [0, 1, 2])
    routes = executor.read_buffer(ROUTES, 3)[:, :4].tolist()
    assert routes == [[0, 1, 2, 3], [1, 2, 4, 8], [0, 1, 2, 5]]
    executor.close()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scoring", RouterScoring)
def test_a_row_that_is_not_finite_harms_no_other(isa: str, scoring: RouterScoring) -> None:
    router = RouterSpec(8, 3, scoring, True, bias="bias", num_groups=2, top_groups=1)
    shape = Shape(router)
    arrays = arrays_of(shape, 20)
    executor = build(program_of(shape, 20), arrays, Bench(2, isa))
    tokens = list(range(20))
    clean = run(executor, tokens)
    executor.close()
    arrays["logits"][4], arrays["table"][9] = np.nan, np.inf
    executor = build(program_of(shape, 20), arrays, Bench(2, isa))
    got = run(executor, tokens)
    routes = executor.read_buffer(ROUTES, 20)[:, :3]
    executor.close()
    assert (np.diff(routes) > 0).all()
    assert routes.min() >= 0
    assert routes.max() < 8
    assert np.isnan(got[4]).all()
    assert not np.isfinite(got[9]).any()
    others = [t for t in tokens if t not in (4, 9)]
    assert got[others].tobytes() == clean[others].tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
def test_the_bits_of_a_row_do_not_depend_on_its_company(isa: str, dtype: DType) -> None:
    """An expert sees one row, a few, and more than a tile; widths beyond a block of columns."""
    shape = Shape(softmax_router(3, 2), hidden=600, size=530, dtype=dtype)
    arrays = arrays_of(shape, 40)
    tokens = np.random.default_rng(4).integers(0, 40, 200).tolist()
    seen: dict[int, bytes] = {}
    for threads in (1, 3):
        executor = build(program_of(shape, 40), arrays, Bench(threads, isa))
        for num_rows in (1, 2, 3, 5, 8, 12, 97, 200):
            for token, row in zip(tokens[:num_rows], run(executor, tokens[:num_rows])):
                assert seen.setdefault(token, row.tobytes()) == row.tobytes()
        executor.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"router": softmax_router(5, 6)}, "fewer experts"),
        ({"router": softmax_router(4, 2)}, "do not fit"),
        ({"router": replace(softmax_router(5, 2), num_groups=2)}, "fewer experts"),
        ({"out": 0}, "in place"),
        ({"routes": GATED}, "do not fit"),
        ({"gated": 17}, "no buffer"),
        ({"down": "gate_up"}, "another shape"),
        ({"gate_up": "down"}, "another shape"),
        ({"router": replace(softmax_router(5, 2), bias="logits")}, "another shape"),
    ],
)
def test_a_mixture_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    shape = Shape(softmax_router(5, 2))
    with pytest.raises(KernelError, match=message):
        build(program_of(shape, 8, **change), arrays_of(shape, 8), Bench())


@pytest.mark.parametrize("piece", [1, 5, 7, 24, 31, 240])
def test_stacked_matrices_are_packed_each_by_itself(piece: int) -> None:
    """Rows arrive in pieces that begin and end anywhere."""
    program = program_of(Shape(softmax_router(5, 2)), 8)
    weight = next(s for s in program.slots if s.name == "gate_up")
    assert (weight.rows, weight.stack, weight.total_rows) == (24, 10, 240)
    rows = arrays_of(Shape(softmax_router(5, 2)), 8)["gate_up"]
    weights = CpuWeights(program)
    for first in range(0, 240, piece):
        weights.put(weight, first, host_tensor(rows[first : first + piece]))
    packed = weights.packed(weight).view(np.float32).reshape(10, 40, 64)
    assert (packed[:, :, :24].transpose(0, 2, 1).reshape(240, 40) == rows).all()
    assert (packed[:, :, 24:] == 0).all()
    with pytest.raises(KernelError, match="does not fit"):
        weights.put(weight, 239, host_tensor(rows[:2]))


def test_random_experts_differ_from_each_other() -> None:
    program = program_of(Shape(softmax_router(5, 2)), 8)
    weight = next(s for s in program.slots if s.name == "down")
    weights = CpuWeights(program)
    weights.fill_random(weight, 3)
    packed = weights.packed(weight).view(np.float32).reshape(5, 24, 64)[:, :, :40]
    assert len({matrix.tobytes() for matrix in packed}) == 5
    assert np.abs(packed.std() * 24**0.5 - 1) < 0.05
