"""Keys and values as codes: the kernels and the torch reference against plain numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.contract.plan_builder import Chunk, PlanBuilder, Track
from tests.unit.kernels.kv_codes_plain import (
    coded,
    coded_attention,
    e4m3_numbers,
    nearest_e4m3,
    rotated,
)
from tests.unit.kernels.programs import (
    ISAS,
    Bench,
    Heads,
    attention_program,
    build,
    causal_attention,
    run_after_poison,
    run_chunked,
)

from hearth.core.errors import KernelError
from hearth.core.program import KvGroupSpec
from hearth.core.spec import KvDType
from hearth.kernels.packing import kv_block_bytes, kv_refusal

torch = pytest.importorskip("torch")

from hearth.kernels.reference import kv_codes  # noqa: E402 -- needs torch

VOCAB = 61
CODED = [KvDType.INT8, KvDType.FP8, KvDType.INT4]
# Relative to the largest output. Where a code lies in the middle of two values a rotation that was
# summed in another order decides otherwise: of int4 a step is an eighth of the largest key.
FLIPPED = {KvDType.INT8: 2e-5, KvDType.FP8: 2e-5, KvDType.INT4: 2e-2}
HEADS = [
    Heads(4, 4, 16),
    Heads(7, 1, 20),
    Heads(8, 2, 64),
    Heads(6, 3, 6, window=33),
    Heads(2, 1, 128, window=100),
    Heads(16, 1, 128),
    Heads(2, 1, 96),
    Heads(4, 2, 24, window=1),
    Heads(2, 1, 200),
    Heads(4, 2, 24, window=70, soft_cap=0.8),
]


def random_rows(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Normal, with some channels that are far larger, as keys have them."""
    rows = np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)
    rows[..., 3::37] *= 6
    return rows


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("dtype", CODED)
@pytest.mark.parametrize("rounded", [False, True], ids=["exact", "rounded"])
def test_attention_over_codes_equals_its_definition_however_it_was_chunked(
    isa: str, heads: Heads, dtype: KvDType, rounded: bool
) -> None:
    length, width = 700, (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim
    heads = replace(heads, rounded=rounded)
    arrays = {"table": random_rows((VOCAB, width), 5)}
    tokens = np.random.default_rng(6).integers(0, VOCAB, length).tolist()
    bench = Bench(2, isa, max_tokens=length, num_blocks=64, block_size=32, kv_dtype=dtype)
    got = run_chunked(arrays, heads, tokens, bench)
    qkv = arrays["table"][tokens]
    expected = coded_attention(qkv, heads, dtype)
    errors = np.abs(got - expected) / max(1.0, np.abs(expected).max())
    assert np.quantile(errors, 0.99 if rounded else 1) < (2e-4 if rounded else FLIPPED[dtype])
    assert errors.max() < max(2**-8, FLIPPED[dtype])
    exact = causal_attention(qkv, replace(heads, rounded=False))
    assert np.abs(got - exact).mean() > 1e-4, "nothing was rounded"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [KvDType.INT8, KvDType.INT4])
@pytest.mark.parametrize("head_dim", [16, 128, 144])
def test_a_sink_leaves_the_other_keys_their_weights(
    isa: str, dtype: KvDType, head_dim: int
) -> None:
    """The first token takes nearly all weight and has no value to speak of, as in trained models.

    What remains are weights of 2^−10 that share 64 keys, and its fixed point, with the largest.
    """
    heads = Heads(2, 1, head_dim, rounded=True)
    table = np.random.default_rng(5).normal(0, 1, (VOCAB, 4 * head_dim)).astype(np.float32)
    table[:, : 2 * head_dim] *= 0.1  # queries and keys
    table[:, :head_dim:7] += 2.0
    table[:, head_dim : 2 * head_dim : 7] += 2.0
    table[:, 2 * head_dim : 3 * head_dim] *= 0.1
    sunk = 10 / np.log2(np.e) * head_dim**0.5 / (2.0 * len(range(0, head_dim, 7)))
    table[0, 2 * head_dim : 3 * head_dim : 7] += sunk
    table[0, 3 * head_dim :] *= 0.01
    table[1:, 3 * head_dim :] += 1.0
    executor = build(
        attention_program(VOCAB, heads), {"table": table}, Bench(1, isa, kv_dtype=dtype)
    )
    tokens = [0, *range(1, 60)]
    executor.execute(PlanBuilder(16, 64).plan([Chunk(Track(tokens), 60)]))
    got = executor.read_buffer(1, 60)[40:]
    executor.close()
    expected = coded_attention(table[tokens], heads, dtype)[40:]
    assert 0.01 < np.abs(expected).mean() < 0.3, "a sink takes most"
    assert np.abs(got - expected).max() < 4e-3 * np.abs(expected).max()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [KvDType.INT8, KvDType.INT4])
@pytest.mark.parametrize("rounded", [False, True], ids=["exact", "rounded"])
def test_values_and_scores_far_apart_keep_what_counts(
    isa: str, dtype: KvDType, rounded: bool
) -> None:
    """Scales of neighbouring keys differ by 2^20, and scores by hundreds."""
    heads = Heads(4, 2, 64, rounded=rounded)
    table = random_rows((VOCAB, 8 * 64), 5)
    table[:, : 4 * 64] *= 30.0
    table[1::3, 6 * 64 :] *= 2.0**-20
    table[2::3, 6 * 64 :] *= 2.0**15
    tokens = np.random.default_rng(6).integers(0, VOCAB, 300).tolist()
    bench = Bench(2, isa, max_tokens=300, kv_dtype=dtype)
    executor = build(attention_program(VOCAB, heads), {"table": table}, bench)
    executor.execute(PlanBuilder(16, 64).plan([Chunk(Track(tokens), 300)]))
    got = executor.read_buffer(1, 300)
    executor.close()
    expected = coded_attention(table[tokens], heads, dtype)
    assert np.isfinite(got).all()
    most = np.abs(expected).max()
    assert np.quantile(np.abs(got - expected), 0.99) < 1e-3 * most


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rotates_keys", [True, False])
def test_keys_in_four_bits_need_their_rotation(isa: str, rotates_keys: bool) -> None:
    """One large channel takes all of the range, or is spread over the head."""
    heads = Heads(4, 1, 64)
    table = np.random.default_rng(5).normal(0, 1, (VOCAB, 6 * 64)).astype(np.float32)
    table[:, 4 * 64 + 9] = 30.0
    bench = Bench(1, isa, max_tokens=200, kv_dtype=KvDType.INT4, rotates_keys=rotates_keys)
    executor = build(attention_program(VOCAB, heads), {"table": table}, bench)
    tokens = np.random.default_rng(6).integers(0, VOCAB, 200).tolist()
    executor.execute(PlanBuilder(16, 64).plan([Chunk(Track(tokens), 200)]))
    got = executor.read_buffer(1, 200)
    executor.close()
    defined = coded_attention(table[tokens], heads, "int4", rotates_keys=rotates_keys)
    assert np.abs(got - defined).max() < 2e-2
    v_exact = causal_attention(table[tokens], heads)
    error = np.linalg.norm(got - v_exact) / np.linalg.norm(v_exact)
    assert error < 0.25 if rotates_keys else error > 0.4


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", CODED)
@pytest.mark.parametrize("rounded", [False, True], ids=["exact", "rounded"])
@pytest.mark.parametrize("window", [0, 1, 7, 32])
def test_what_others_left_in_a_block_has_no_part_in_an_answer(
    isa: str, dtype: KvDType, rounded: bool, window: int
) -> None:
    """NaN scales in keys and values of the same blocks."""
    heads = Heads(6, 2, 20, window=window, rounded=rounded)
    arrays = {"table": random_rows((VOCAB, 10 * 20), 5)}
    arrays["table"][0] = np.nan
    bench = Bench(1, isa, num_blocks=8, kv_dtype=dtype)
    tokens = np.random.default_rng(6).integers(1, VOCAB, 80).tolist()
    expected = coded_attention(arrays["table"][tokens], heads, dtype)
    for got in run_after_poison(arrays, heads, tokens, bench):
        errors = np.abs(got - expected) / np.abs(expected).max()
        assert errors.max() < max(2**-7 if rounded else 1e-4, FLIPPED[dtype])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", CODED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_key_or_value_that_is_not_finite_shows_in_the_rows_that_see_it(
    isa: str, dtype: KvDType, bad: float
) -> None:
    heads = Heads(2, 1, 24)
    arrays = {"table": random_rows((VOCAB, 4 * 24), 5)}
    arrays["table"][7, 2 * 24 + 5 :: 24] = bad  # one element of the key and one of the value
    executor = build(attention_program(VOCAB, heads), arrays, Bench(1, isa, kv_dtype=dtype))
    executor.execute(PlanBuilder(16, 64).plan([Chunk(Track([1, 2, 3, 7, 4]), 5)]))
    got = executor.read_buffer(1, 5)
    executor.close()
    assert np.isfinite(got[:3]).all()
    assert np.isnan(got[3:]).any(axis=1).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", CODED)
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-32, 1e-28, 1e30])
def test_heads_of_any_size_are_stored(isa: str, dtype: KvDType, size: float) -> None:
    heads = Heads(2, 1, 32)
    table = random_rows((VOCAB, 4 * 32), 5)
    table[:, : 2 * 32] /= max(size, 1e-30)  # scores stay what they are
    table[:, 2 * 32 :] *= size
    executor = build(
        attention_program(VOCAB, heads), {"table": table}, Bench(1, isa, kv_dtype=dtype)
    )
    tokens = list(range(40))
    executor.execute(PlanBuilder(16, 64).plan([Chunk(Track(tokens), 40)]))
    got = executor.read_buffer(1, 40) / max(size, 1e-30)
    executor.close()
    values = table[tokens][:, 3 * 32 :] / max(size, 1e-30)
    if size < 1e-30:
        assert not got.any()
        return
    assert np.isfinite(got).all()
    assert np.abs(got[0, :32] - values[0]).max() < 0.15 * np.abs(values[0]).max()


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 200),
    seed=st.integers(0, 1000),
    exponent=st.integers(-20, 20),
    dtype=st.sampled_from(CODED),
)
def test_the_reference_codes_are_those_of_the_definition(
    width: int, seed: int, exponent: int, dtype: KvDType
) -> None:
    x = np.random.default_rng(seed).normal(0, 10.0**exponent, (3, 2, width)).astype(np.float32)
    x[0, 0] = 0.0
    found = kv_codes.code_values(torch.from_numpy(x), dtype)
    codes, scales = coded(x, dtype, 64 if dtype is KvDType.INT4 else width)
    assert np.array_equal(found.codes.numpy(), codes)
    assert np.array_equal(found.values.numpy(), codes * scales)


@given(width=st.integers(1, 160))
def test_the_rotation_is_sylvesters_matrix_and_its_own_inverse(width: int) -> None:
    x = random_rows((4, width), 1)
    turned = kv_codes.rotate(torch.from_numpy(x))
    assert np.abs(turned.numpy() - rotated(x)).max() < 1e-5
    assert np.abs(kv_codes.rotate(turned).numpy() - x).max() < 1e-5


def test_eight_bit_floats_are_rounded_as_torch_rounds_them() -> None:
    numbers = e4m3_numbers()
    middles = (numbers[1:] + numbers[:-1]) / 2
    near = np.concatenate([np.nextafter(middles, 0), middles, np.nextafter(middles, 1e9)])
    x = np.concatenate([numbers, near, -near]).astype(np.float32)
    expected = torch.from_numpy(x).to(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(nearest_e4m3(x), expected)


@pytest.mark.parametrize("isa", ISAS)
def test_every_eight_bit_float_is_stored_and_read_as_it_is(isa: str) -> None:
    """With 448 in each head the scale is 1; a row that sees itself alone is its own value."""
    numbers = e4m3_numbers()
    middles = (numbers[1:] + numbers[:-1]) / 2
    every = np.concatenate([numbers, -numbers, middles, np.nextafter(middles, 0)])
    every = np.concatenate([every, np.full(-len(every) % 31, 1.0)]).astype(np.float32)
    values = np.concatenate(
        [every.reshape(-1, 31), np.full((len(every) // 31, 1), 448.0, np.float32)], axis=1
    )
    table = np.concatenate([np.zeros((len(values), 64), np.float32), values], axis=1)
    heads = Heads(1, 1, 32, window=1)
    bench = Bench(1, isa, kv_dtype=KvDType.FP8)
    executor = build(attention_program(len(table), heads), {"table": table}, bench)
    executor.execute(PlanBuilder(16, 64).plan([Chunk(Track([*range(len(table))]), len(table))]))
    got = executor.read_buffer(1, len(table))
    executor.close()
    assert np.array_equal(got, nearest_e4m3(values))


@pytest.mark.parametrize(
    ("dtype", "head_dim", "num_bytes"),
    [
        (KvDType.FLOAT32, 128, 1024),
        (KvDType.BFLOAT16, 128, 512),
        (KvDType.INT8, 128, 256 + 4),
        (KvDType.FP8, 128, 256 + 4),
        (KvDType.INT4, 128, 128 + 2 + 4),
        (KvDType.INT8, 5, 6 + 16 + 4),
        (KvDType.INT4, 6, 4 + 8 + 4),
    ],
)
def test_a_tokens_bytes_are_its_codes_and_scales(
    dtype: KvDType, head_dim: int, num_bytes: int
) -> None:
    assert kv_block_bytes(KvGroupSpec(3, 2, head_dim, 0), 32, dtype) == 3 * 2 * 32 * num_bytes


def test_widths_that_cannot_be_stored_are_refused_by_plan_and_library() -> None:
    assert "even" in kv_refusal(KvDType.INT4, 5)
    assert "512" in kv_refusal(KvDType.INT8, 513)
    assert not kv_refusal(KvDType.INT8, 5)
    for dtype, dim in ((KvDType.INT4, 5), (KvDType.FP8, 520)):
        arrays = {"table": random_rows((VOCAB, 4 * dim), 5)}
        with pytest.raises(KernelError, match="cannot be"):
            build(attention_program(VOCAB, Heads(2, 1, dim)), arrays, Bench(kv_dtype=dtype))
