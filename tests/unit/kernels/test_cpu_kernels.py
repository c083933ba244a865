"""The C++ kernels against plain definitions, over odd shapes, on every instruction set here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.contract.plan_builder import Chunk, HowToSample, PlanBuilder, Track
from tests.unit.kernels.programs import (
    ISAS,
    Bench,
    Heads,
    attention_program,
    build,
    causal_attention,
    host_tensor,
    int32,
    linear_program,
    run_after_poison,
    run_chunked,
    sample_program,
    slot,
    to_bfloat16,
)

from hearth.core.errors import ConfigError, KernelError
from hearth.core.program import (
    Add,
    Attend,
    BufferRows,
    BufferSpec,
    Embed,
    Linear,
    Norm,
    Op,
    Select,
    StepProgram,
)
from hearth.core.spec import DType, SlotKind
from hearth.core.step import KvConfig, StepLimits
from hearth.kernels.cpu.executor import CpuExecutor
from hearth.kernels.cpu.weights import CpuWeights
from hearth.kernels.packing import HostTensor
from hearth.kernels.reference.sampling import sample_rows

VOCAB = 61
LINEAR_TOLERANCE = 2e-5  # relative to the largest output; float32 sums of up to 700 terms


def random_rows(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=25, deadline=None)
@given(
    hidden=st.integers(1, 700),
    out=st.integers(1, 200),
    rows=st.integers(1, 110),
    dtype=st.sampled_from(tuple(DType)),
    bias=st.booleans(),
    threads=st.integers(1, 3),
)
def test_a_linear_layer_equals_the_matrix_product_at_any_shape(
    isa: str, hidden: int, out: int, rows: int, dtype: DType, bias: bool, threads: int
) -> None:
    program = linear_program(VOCAB, hidden, out, dtype, bias=bias)
    arrays = {
        "table": random_rows((VOCAB, hidden), 1),
        "weight": random_rows((out, hidden), 2),
        "bias": random_rows((out,), 3),
    }
    executor = build(program, arrays, Bench(threads=threads, isa=isa))
    tokens = np.random.default_rng(4).integers(0, VOCAB, rows).tolist()
    executor.execute(PlanBuilder(16, 0).plan([Chunk(Track(tokens, blocks=[0] * 10), rows)]))
    got = executor.read_buffer(1, rows)
    executor.close()
    weight = as_stored(arrays["weight"], dtype)
    expected = arrays["table"][tokens].astype(np.float64) @ weight.T.astype(np.float64)
    expected += arrays["bias"] if bias else 0.0
    assert np.abs(got - expected).max() <= LINEAR_TOLERANCE * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("isa", ISAS)
def test_the_bits_of_a_row_do_not_depend_on_how_many_rows_go_with_it(isa: str) -> None:
    program = linear_program(VOCAB, 1100, 130, DType.BFLOAT16, bias=True)
    arrays = {
        "table": random_rows((VOCAB, 1100), 1),
        "weight": random_rows((130, 1100), 2),
        "bias": random_rows((130,), 3),
    }
    executor = build(program, arrays, Bench(threads=2, isa=isa))
    tokens = np.random.default_rng(4).integers(0, VOCAB, 200).tolist()
    seen: dict[int, bytes] = {}
    for rows in (1, 2, 3, 5, 6, 7, 12, 13, 95, 96, 97, 200):
        executor.execute(PlanBuilder(16, 0).plan([Chunk(Track(tokens, blocks=[0] * 20), rows)]))
        for token, row in zip(tokens, executor.read_buffer(1, rows)):
            assert seen.setdefault(token, row.tobytes()) == row.tobytes()
    executor.close()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "heads",
    [
        Heads(4, 4, 16),
        Heads(7, 1, 20),
        Heads(8, 2, 64),
        Heads(6, 3, 5, window=33),
        Heads(2, 1, 128, window=100),
        Heads(4, 2, 24, window=1),
        Heads(4, 2, 24, window=70, soft_cap=0.8),
    ],
    ids=str,
)
@pytest.mark.parametrize("storage", ["float32", "bfloat16", "rounded"])
def test_attention_equals_its_definition_and_its_bits_do_not_depend_on_chunks(
    isa: str, heads: Heads, storage: str
) -> None:
    length, width = 700, (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim
    heads = replace(heads, rounded=storage == "rounded")
    arrays = {"table": random_rows((VOCAB, width), 5)}
    tokens = np.random.default_rng(6).integers(0, VOCAB, length).tolist()
    kv_dtype = DType.FLOAT32 if storage == "float32" else DType.BFLOAT16
    bench = Bench(2, isa, max_tokens=length, num_blocks=64, block_size=32, kv_dtype=kv_dtype)
    got = run_chunked(arrays, heads, tokens, bench)
    qkv = arrays["table"][tokens]
    if kv_dtype is DType.BFLOAT16:
        first_key = heads.num_heads * heads.head_dim
        qkv = np.concatenate([qkv[:, :first_key], to_bfloat16(qkv[:, first_key:])], axis=1)
    expected = causal_attention(qkv, heads)
    errors = np.abs(got - expected) / max(1.0, np.abs(expected).max())
    # A weight between two values of bfloat16 may be rounded to either: once in thousands.
    assert np.quantile(errors, 0.99 if heads.rounded else 1) < 2e-5
    assert errors.max() < 2**-8
    if heads.rounded:
        exact = causal_attention(qkv, replace(heads, rounded=False))
        assert heads.window == 1 or np.abs(got - exact).mean() > 1e-5


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("storage", ["float32", "bfloat16", "rounded"])
@pytest.mark.parametrize("window", [0, 1, 7, 32])
def test_what_others_left_in_a_block_is_not_even_multiplied_by_zero(
    isa: str, storage: str, window: int
) -> None:
    """NaN in keys and values of the same blocks, also in the half of a pair that is not seen."""
    heads = Heads(6, 2, 20, window=window, rounded=storage == "rounded")
    arrays = {"table": random_rows((VOCAB, 10 * 20), 5)}
    arrays["table"][0] = np.nan
    kv_dtype = DType.FLOAT32 if storage == "float32" else DType.BFLOAT16
    tokens = np.random.default_rng(6).integers(1, VOCAB, 80).tolist()
    qkv = arrays["table"][tokens]
    if kv_dtype is DType.BFLOAT16:
        qkv = np.concatenate([qkv[:, : 6 * 20], to_bfloat16(qkv[:, 6 * 20 :])], axis=1)
    expected = causal_attention(qkv, heads)
    bench = Bench(1, isa, num_blocks=8, kv_dtype=kv_dtype)
    for got in run_after_poison(arrays, heads, tokens, bench):
        assert np.abs(got - expected).max() < (2**-7 if heads.rounded else 1e-4)


def test_attention_never_reads_blocks_that_lie_behind_the_window() -> None:
    heads = Heads(2, 1, 16, window=40)
    arrays = {"table": random_rows((VOCAB, 64), 5)}
    tokens = np.random.default_rng(6).integers(0, VOCAB, 300).tolist()
    executor = build(attention_program(VOCAB, heads), arrays, Bench(max_tokens=300))
    builder, track = PlanBuilder(16, 64), Track(tokens)
    executor.execute(builder.plan([Chunk(track, 299)]))
    plan = builder.plan([Chunk(track, 1)])
    first = (299 + 1 - 40) // 16
    trimmed = replace(
        plan,
        blocks=plan.blocks[first:].copy(),
        block_start=np.array([[0, len(plan.blocks) - first]], np.int32),
        first_block=np.array([[first]], np.int32),
    )
    executor.execute(trimmed)
    expected = causal_attention(arrays["table"][tokens], heads)[-1]
    assert np.abs(executor.read_buffer(1, 1)[0] - expected).max() < 1e-5
    with pytest.raises(KernelError, match="still visible"):
        executor.execute(
            replace(
                trimmed,
                blocks=trimmed.blocks[1:].copy(),
                block_start=trimmed.block_start - np.array([[0, 1]], np.int32),
                first_block=np.array([[first + 1]], np.int32),
            )
        )
    executor.close()


def test_bfloat16_keys_and_values_are_rounded_once_when_stored() -> None:
    heads = Heads(4, 2, 24)
    arrays = {"table": random_rows((VOCAB, 8 * 24), 5)}
    bench = Bench(kv_dtype=DType.BFLOAT16)
    executor = build(attention_program(VOCAB, heads), arrays, bench)
    tokens = list(range(50))
    executor.execute(PlanBuilder(16, 64).plan([Chunk(Track(tokens), 50)]))
    qkv = arrays["table"][tokens]
    qkv = np.concatenate([qkv[:, : 4 * 24], to_bfloat16(qkv[:, 4 * 24 :].copy())], axis=1)
    assert np.abs(executor.read_buffer(1, 50) - causal_attention(qkv, heads)).max() < 1e-5
    executor.close()


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40, deadline=None)
@given(
    temperature=st.sampled_from((0.0, 0.3, 1.0, 1.7)),
    top_k=st.sampled_from((0, 1, 2, 7, 60, 61, 500)),
    top_p=st.sampled_from((1.0, 0.95, 0.5, 0.05)),
    min_p=st.sampled_from((0.0, 0.02, 0.3)),
    seed=st.integers(0, 2**64 - 1),
    spread=st.sampled_from((0.01, 1.0, 6.0)),
)
def test_sampling_chooses_what_the_plain_definition_chooses(
    isa: str,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    spread: float,
) -> None:
    table = random_rows((VOCAB, VOCAB), seed % 1000, spread)
    executor = build(sample_program(VOCAB), {"table": table}, Bench(isa=isa))
    how = HowToSample(temperature, top_k, top_p, min_p, seed)
    track = Track(list(range(VOCAB)), blocks=[0] * 8)
    plan = PlanBuilder(16, 0).plan([Chunk(track, VOCAB, tuple(range(VOCAB)))], how)
    result = executor.execute(plan)
    executor.close()
    expected = sample_rows(table, plan.sampling)
    # Weights differ in the last bit between the two exponentials, so that a draw on the border of
    # two tokens may fall on either side: at most one of 61 rows.
    assert (result.tokens != expected.tokens).sum() <= (0 if temperature == 0 else 1)
    same = result.tokens == expected.tokens
    assert np.abs(result.logprobs - expected.logprobs)[same].max() < 1e-5
    assert result.logits is not None
    assert result.logits.tobytes() == table.tobytes()


def test_a_usual_top_p_over_a_large_vocabulary_keeps_the_same_tokens() -> None:
    vocab = 5000
    table = np.zeros((vocab, vocab), np.float32)
    table[:8] = random_rows((8, vocab), 3, 2.0)
    executor = build(sample_program(vocab), {"table": table}, Bench())
    for top_p in (0.1, 0.9, 0.999):
        how = [HowToSample(1.0, 0, top_p, 0.0, seed) for seed in range(8)]
        track = Track(list(range(8)), blocks=[0])
        plan = PlanBuilder(16, 0).plan([Chunk(track, 8, tuple(range(8)))], how)
        result = executor.execute(plan)
        expected = sample_rows(table[:8], plan.sampling)
        assert (result.tokens != expected.tokens).sum() <= 1
    executor.close()


@pytest.mark.parametrize("isa", ISAS)
def test_the_smallest_temperatures_choose_the_largest_logit(isa: str) -> None:
    table = random_rows((VOCAB, VOCAB), 12)
    executor = build(sample_program(VOCAB), {"table": table}, Bench(isa=isa))
    rows = tuple(range(VOCAB))
    for temperature in (1e-45, 1e-40, 1e-38, 1e-30, 1e-20):
        track = Track(list(rows), blocks=[0] * 8)
        plan = PlanBuilder(16, 0).plan([Chunk(track, VOCAB, rows)], HowToSample(temperature))
        assert executor.execute(plan).tokens.tolist() == table.argmax(axis=1).tolist()
    executor.close()


@pytest.mark.parametrize("isa", ISAS)
def test_a_token_without_weight_is_never_drawn(isa: str) -> None:
    table = np.full((VOCAB, VOCAB), -np.inf, np.float32)
    table[:, 7] = table[:, 9] = 0.0
    executor = build(sample_program(VOCAB), {"table": table}, Bench(isa=isa))
    # The seed and position whose 24 random bits are all zero.
    how = HowToSample(1.0, seed=1558241)
    plan = PlanBuilder(16, 0).plan([Chunk(Track([0] * 5, blocks=[0]), 5, (4,))], how)
    assert plan.sampling.position.tolist() == [5]
    assert executor.execute(plan).tokens.tolist() == [7]
    executor.close()


@pytest.mark.parametrize("hidden", [24, 40, 64])
def test_a_value_that_is_not_finite_harms_only_its_own_request(hidden: int) -> None:
    program = linear_program(VOCAB, hidden, hidden, DType.FLOAT32, bias=False)
    program = replace(
        program,
        ops=(*program.ops, Add(0, 1), Norm(0, "gain", 1e-5, 1)),
        slots=(*program.slots, slot("gain", SlotKind.VECTOR, hidden)),
    )
    arrays = {
        "table": random_rows((VOCAB, hidden), 1),
        "weight": random_rows((hidden, hidden), 2),
        "gain": np.ones(hidden, np.float32),
    }
    arrays["table"][5, 3] = np.inf
    executor = build(program, arrays, Bench())
    outputs = []
    for token in (1, 5, 1):
        plan = PlanBuilder(16, 0).plan([Chunk(Track([token], blocks=[0]), 1)])
        executor.execute(plan)
        outputs.append(executor.read_buffer(1, 1))
    executor.close()
    assert not np.isfinite(outputs[1]).all()
    assert outputs[2].tobytes() == outputs[0].tobytes()


def test_equal_logits_give_the_lowest_token_at_temperature_zero() -> None:
    table = np.ones((VOCAB, VOCAB), np.float32)
    table[:, 40] = table[:, 50] = 2.0
    executor = build(sample_program(VOCAB), {"table": table}, Bench())
    plan = PlanBuilder(16, 0).plan([Chunk(Track([0], blocks=[0]), 1, (0,))])
    assert executor.execute(plan).tokens.tolist() == [40]
    executor.close()


def test_a_negative_token_stands_for_a_result_of_the_step_before() -> None:
    table = random_rows((VOCAB, VOCAB), 8)
    executor = build(sample_program(VOCAB), {"table": table}, Bench())
    builder = PlanBuilder(16, 0)
    first = executor.execute(builder.plan([Chunk(Track([5, 9], blocks=[0]), 2, (0, 1))]))
    second = executor.execute(builder.plan([Chunk(Track([-2, -1], blocks=[0]), 2, (0, 1))]))
    assert second.tokens.tolist() == table[first.tokens[::-1]].argmax(axis=1).tolist()
    with pytest.raises(KernelError, match="tokens"):
        executor.execute(builder.plan([Chunk(Track([-3], blocks=[0]), 1, (0,))]))
    executor.close()


def test_block_copies_are_done_before_the_step() -> None:
    heads = Heads(2, 1, 16)
    arrays = {"table": random_rows((VOCAB, 64), 5)}
    executor = build(attention_program(VOCAB, heads), arrays, Bench())
    builder = PlanBuilder(16, 64)
    original = Track(list(range(20)))
    executor.execute(builder.plan([Chunk(original, 17)]))
    fork = Track([*range(17), 40], num_computed=17, blocks=[original.blocks[0], builder.free.pop()])
    executor.execute(builder.plan([Chunk(fork, 1)], copies=[(original.blocks[1], fork.blocks[1])]))
    expected = causal_attention(arrays["table"][fork.tokens], heads)[-1]
    assert np.abs(executor.read_buffer(1, 1)[0] - expected).max() < 1e-5
    executor.close()


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    window=st.sampled_from([0, 5, 70]),
    rounded=st.booleans(),
    data=st.data(),
)
def test_attention_of_some_rows_has_the_bits_of_attention_of_all(
    isa: str, lengths: list[int], window: int, rounded: bool, data: st.DataObject
) -> None:
    """Rows in any order and number: neighbours, gaps, the same one twice, none."""
    heads = Heads(4, 2, 16, window=window, rounded=rounded)
    program = attention_program(VOCAB, heads)
    whole = program.ops[-1]
    assert isinstance(whole, Attend)
    buffers = (
        *program.buffers,
        *(replace(one, rows=BufferRows.LOGITS) for one in program.buffers),
    )
    program = replace(
        program, buffers=buffers, ops=(*program.ops, Select(0, 2), replace(whole, qkv=2, out=3))
    )
    kv_dtype = DType.BFLOAT16 if rounded else DType.FLOAT32
    bench = Bench(isa=isa, threads=2, kv_dtype=kv_dtype, max_tokens=400)
    executor = build(program, {"table": random_rows((VOCAB, buffers[0].width), 7)}, bench)
    random = np.random.default_rng(8)
    tracks = [Track(random.integers(0, VOCAB, length).tolist()) for length in lengths]
    plan = PlanBuilder(16, 64).plan([Chunk(track, len(track.tokens)) for track in tracks])
    num_rows = sum(lengths)
    wanted = data.draw(st.lists(st.integers(0, num_rows - 1), max_size=60))
    if data.draw(st.booleans()):
        wanted = sorted(wanted)
    executor.execute(replace(plan, logit_rows=int32(wanted)))
    some = executor.read_buffer(3, len(wanted))
    assert np.array_equal(some, executor.read_buffer(1, num_rows)[wanted])
    executor.close()


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (Select(1, 2), "select does not fit"),
        (Add(0, 1), "other rows"),
        (Linear(1, "weight", None, 0), "other rows"),
        (Norm(1, "norm", 1e-6, 0), "other rows"),
    ],
    ids=str,
)
def test_an_operation_on_other_rows_than_it_writes_is_refused(op: Op, message: str) -> None:
    """There may be fewer rows of logits than of tokens."""
    logits = BufferSpec("y", VOCAB, BufferRows.LOGITS)
    buffers = (BufferSpec("x", VOCAB), logits, replace(logits, name="z"))
    slots = (
        slot("table", SlotKind.TABLE, VOCAB, VOCAB),
        slot("weight", SlotKind.LINEAR, VOCAB, VOCAB),
        slot("norm", SlotKind.VECTOR, VOCAB),
    )
    program = StepProgram(buffers, (Embed("table", 0), Select(0, 1), op), slots, (), VOCAB)
    square = random_rows((VOCAB, VOCAB), 1)
    arrays = {"table": square, "weight": square, "norm": np.ones(VOCAB, np.float32)}
    with pytest.raises(KernelError, match=message):
        build(program, arrays, Bench())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tokens", [VOCAB], "tokens"),
        ("slots", [[64 * 16]], "slots"),
        ("blocks", [64], "blocks"),
        ("blocks", [-1], "blocks"),
        ("logit_rows", [1], "logit_rows"),
        ("context", [4096], "context"),
        ("row_start", [0, 2], "row_start"),
        ("block_start", [[0, 0]], "too few blocks"),
    ],
)
def test_a_plan_that_leaves_its_limits_is_refused(
    field: str, value: list[int], message: str
) -> None:
    arrays = {"table": random_rows((VOCAB, 64), 5)}
    executor = build(attention_program(VOCAB, Heads(2, 1, 16)), arrays, Bench())
    plan = PlanBuilder(16, 64).plan([Chunk(Track([1]), 1, (0,))])
    change: dict[str, Any] = {field: int32(value)}
    broken = replace(plan, **change)
    with pytest.raises(KernelError, match=message):
        executor.execute(broken)
    executor.execute(plan)
    executor.close()
    with pytest.raises(KernelError, match="closed"):
        executor.execute(plan)


def test_an_instruction_set_that_does_not_exist_is_refused() -> None:
    program = linear_program(VOCAB, 8, 8, DType.FLOAT32, bias=False)
    arrays = {"table": random_rows((VOCAB, 8), 1), "weight": random_rows((8, 8), 2)}
    with pytest.raises(ConfigError, match=r"neon.*can run: "):
        build(program, arrays, Bench(isa="neon"))


def test_more_threads_than_cores_lose_no_tile_over_many_short_steps() -> None:
    program = linear_program(VOCAB, 40, 300, DType.FLOAT32, bias=False)
    arrays = {"table": random_rows((VOCAB, 40), 1), "weight": random_rows((300, 40), 2)}
    executor = build(program, arrays, Bench(threads=5))
    expected = None
    for rows in [1, 2, 7, 1, 1, 30] * 200:
        plan = PlanBuilder(16, 0).plan([Chunk(Track(list(range(rows)), blocks=[0, 0]), rows)])
        executor.execute(plan)
        got = executor.read_buffer(1, 1).tobytes()
        expected = expected or got
        assert got == expected
    executor.close()


def test_a_tied_embedding_is_read_from_the_panels_of_the_head() -> None:
    tied = slot("table", SlotKind.LINEAR, 130, 24, DType.BFLOAT16)
    table = random_rows((130, 24), 1)
    program = linear_program(130, 24, 9, DType.FLOAT32, bias=False)
    program = replace(program, slots=(tied, *program.slots[1:]))
    executor = build(program, {"table": table, "weight": random_rows((9, 24), 2)}, Bench())
    executor.execute(PlanBuilder(16, 0).plan([Chunk(Track([0, 63, 64, 129], blocks=[0]), 4)]))
    expected = to_bfloat16(table)[[0, 63, 64, 129]]
    assert executor.read_buffer(0, 4).tobytes() == expected.tobytes()
    executor.close()


def test_float16_weights_arrive_exactly_in_float32() -> None:
    program = linear_program(VOCAB, 40, 70, DType.FLOAT32, bias=False)
    weights = CpuWeights(program)
    halves = random_rows((70, 40), 7).astype(np.float16)
    halves[0, :4] = (6e-8, -6.1e-5, 65504.0, 0.0)
    raw = HostTensor(halves.view(np.uint8).reshape(-1), DType.FLOAT16, halves.shape)
    weights.put(program.slots[1], 0, raw)
    other = CpuWeights(program)
    other.put(program.slots[1], 0, host_tensor(halves.astype(np.float32)))
    assert weights.packed(program.slots[1]).tobytes() == other.packed(program.slots[1]).tobytes()


def test_random_filling_is_reproducible_and_the_same_in_every_layout() -> None:
    programs = [linear_program(VOCAB, 33, 70, dtype, bias=True) for dtype in DType][:2]
    filled = []
    for program in programs:
        weights = CpuWeights(program)
        weights.fill_random(program.slots[1], 3)
        filled.append(weights.packed(program.slots[1]))
    again = CpuWeights(programs[0])
    again.fill_random(programs[0].slots[1], 3)
    assert again.packed(programs[0].slots[1]).tobytes() == filled[0].tobytes()
    full = to_bfloat16(filled[0].view(np.float32))
    half = (filled[1].view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    assert full.tobytes() == half.tobytes()
    assert 0.9 < full[full != 0].std() * 33**0.5 < 1.1


def as_stored(array: NDArray[np.float32], dtype: DType) -> NDArray[np.float32]:
    """What a weight of a precision holds of an array."""
    if dtype is DType.FLOAT16:
        return array.astype(np.float16).astype(np.float32)
    return to_bfloat16(array) if dtype is DType.BFLOAT16 else array


def half_layer(halves: NDArray[np.float16], source: DType, isa: str) -> CpuExecutor:
    """A layer of one input, which gives its weights: one output for each."""
    program = linear_program(1, 1, len(halves), DType.FLOAT16, bias=False)
    weights = CpuWeights(program, isa=isa)
    weights.put(program.slots[0], 0, host_tensor(np.ones((1, 1), np.float32)))
    if source is DType.FLOAT16:
        raw = HostTensor(halves.view(np.uint8).reshape(-1), DType.FLOAT16, (len(halves), 1))
    else:
        raw = host_tensor(halves.astype(np.float32).reshape(-1, 1))
    weights.put(program.slots[1], 0, raw)
    kv = KvConfig(16, (), DType.FLOAT32)
    return CpuExecutor(program, weights, StepLimits(16, 16, 16, 64), kv, 1, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("source", [DType.FLOAT16, DType.FLOAT32])
def test_every_finite_half_is_read_as_what_it_is(isa: str, source: DType) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    executor = half_layer(halves, source, isa)
    executor.execute(PlanBuilder(16, 0).plan([Chunk(Track([0], blocks=[0]), 1)]))
    found = executor.read_buffer(1, 1)[0]
    assert np.array_equal(found, halves.astype(np.float32))
    executor.close()


def test_a_half_is_the_nearest_one_and_what_is_too_large_is_refused() -> None:
    random = np.random.default_rng(0)
    values = np.exp(random.uniform(-20, 11, 50_000)).astype(np.float32)
    values[:4] = (65519.996, 2.0**-25, 2.0**-24 * 1.5, 0.0)
    values *= random.choice((-1, 1), len(values)).astype(np.float32)
    program = linear_program(1, 1, len(values), DType.FLOAT16, bias=False)
    weights = CpuWeights(program)
    weights.put(program.slots[1], 0, host_tensor(values.reshape(-1, 1)))
    found = weights.packed(program.slots[1]).view(np.float16)[: len(values)]
    assert np.array_equal(found, values.astype(np.float16))
    values[7] = 65520.0
    with pytest.raises(KernelError, match="65,504"):
        weights.put(program.slots[1], 0, host_tensor(values.reshape(-1, 1)))
