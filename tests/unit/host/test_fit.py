"""The arithmetic of the memory plan, with numbers that can be checked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.core.errors import CapacityError, ConfigError
from hearth.core.program import BufferRows, BufferSpec, KvGroupSpec, StepProgram
from hearth.core.spec import DType, KvDType, QuantSpec, SlotKind, WeightSlot
from hearth.core.units import GIB, MIB
from hearth.host.fit import (
    EXTRA_ROWS,
    RUNTIME_BYTES,
    Fit,
    FitRequest,
    fit,
)
from hearth.host.memory import HostMemory, MemoryFact
from hearth.host.scratch import (
    CODES_BYTES,
    SAMPLER_BYTES,
    SPLIT_BYTES,
    TILE_BYTES,
    canary_bytes,
)
from hearth.kernels.fuse import Fusion
from hearth.kernels.packing import kv_block_bytes

WEIGHTS_BYTES = 64 * 1024 * 1024 * 2  # one matrix of 64 Mi elements as bfloat16
BLOCK_BYTES = 2 * 4 * 2 * 32 * 64 * 2  # layers · heads · (k, v) · block · head size · bytes
PROGRAM = StepProgram(
    buffers=(
        BufferSpec("hidden", 1024),
        BufferSpec("logits", 32768, BufferRows.LOGITS),
    ),
    ops=(),
    slots=(WeightSlot("w", SlotKind.LINEAR, 65536, 1024, (), QuantSpec(DType.BFLOAT16)),),
    kv_groups=(KvGroupSpec(num_layers=2, num_kv_heads=4, head_dim=64),),
    vocab_size=32768,
)
SAMPLER_SCRATCH = 32768 * SAMPLER_BYTES  # of one thread
SCRATCH_BYTES = 4 * (1024 * 512 + 32768 * (8 + EXTRA_ROWS)) + SAMPLER_SCRATCH
REQUEST = FitRequest(PROGRAM, DType.BFLOAT16, 8192, 32, 8, 512)


def memory_of(num_bytes: int) -> HostMemory:
    return HostMemory((MemoryFact(num_bytes, "a test"),))


def memory_with_kv(num_bytes: int) -> HostMemory:
    """So much that just these bytes may be used for the KV cache."""
    return memory_of(WEIGHTS_BYTES + SCRATCH_BYTES + RUNTIME_BYTES + 2 * num_bytes)


def bytes_of(fitted: Fit) -> dict[str, int]:
    return {item.name: item.num_bytes for item in fitted.plan.items}


def test_with_plenty_every_sequence_gets_its_whole_context() -> None:
    fitted = fit(REQUEST, memory_of(16 * GIB))
    assert fitted.kv.num_blocks == (8 * 8192 // 32,)
    assert fitted.limits.max_model_len == 8192
    assert bytes_of(fitted) == {
        "weights": WEIGHTS_BYTES,
        "scratch": SCRATCH_BYTES,
        "runtime": RUNTIME_BYTES,
        "KV cache": 2048 * BLOCK_BYTES,
    }
    assert fitted.limits.max_sequences == 8
    assert fitted.limits.max_logit_rows == 8 + EXTRA_ROWS


def test_with_less_the_kv_cache_takes_half_of_what_is_free_after_weights_and_scratch() -> None:
    fitted = fit(REQUEST, memory_with_kv(300 * BLOCK_BYTES))
    assert fitted.kv.num_blocks == (300,)
    assert fitted.limits.max_model_len == 8192
    assert "half of the" in fitted.plan.items[-1].reason


def test_the_context_is_reduced_only_when_one_sequence_does_not_fit_and_says_so() -> None:
    fitted = fit(REQUEST, memory_with_kv(100 * BLOCK_BYTES))
    assert fitted.limits.max_model_len == 3200
    assert fitted.kv.num_blocks == (100,)
    (choice,) = (c for c in fitted.choices if c.name == "max_model_len")
    assert choice.reason.startswith("reduced from the model's 8,192: the KV cache of one sequence")


def test_an_explicit_context_that_does_not_fit_is_refused_with_the_one_that_would() -> None:
    request = replace(REQUEST, max_model_len=4096)
    with pytest.raises(CapacityError) as caught:
        fit(request, memory_with_kv(100 * BLOCK_BYTES))
    assert caught.value.message.startswith(
        "the KV cache of one sequence of 4,096 tokens needs 8.00 MiB, 6.25 MiB may be used"
    )
    assert caught.value.hint == (
        f"set --max-model-len ≤ 3,200, or set --kv-cache-memory-bytes ≥ {128 * BLOCK_BYTES}"
    )


def test_no_larger_cache_is_offered_than_there_is_memory_for() -> None:
    request = replace(REQUEST, max_model_len=8192)
    with pytest.raises(CapacityError) as caught:
        fit(request, memory_with_kv(100 * BLOCK_BYTES))
    assert caught.value.hint == "set --max-model-len ≤ 3,200"


def test_every_thread_has_its_sampling_memory_and_rows_are_padded() -> None:
    one = bytes_of(fit(REQUEST, memory_of(16 * GIB)))["scratch"]
    four = bytes_of(fit(replace(REQUEST, num_threads=4), memory_of(16 * GIB)))["scratch"]
    assert four - one == 3 * SAMPLER_SCRATCH
    program = replace(PROGRAM, buffers=(BufferSpec("hidden", 65),))
    padded = bytes_of(fit(replace(REQUEST, program=program), memory_of(16 * GIB)))["scratch"]
    assert padded == 4 * 128 * 512 + SAMPLER_SCRATCH


def test_the_canary_s_second_executor_lies_within_a_step_or_is_counted() -> None:
    """16 rows of tokens and of logits in both executors, four blocks, copies of four rows."""
    rows = 16 * 4 * (1024 + 32768)
    canary = 2 * (rows + SAMPLER_SCRATCH) + 4 * BLOCK_BYTES + 48 * 32768
    assert canary < SCRATCH_BYTES
    assert "canary" not in bytes_of(fit(REQUEST, memory_of(16 * GIB)))
    small = replace(REQUEST, max_num_batched_tokens=8, max_num_seqs=1)
    items = bytes_of(fit(small, memory_of(16 * GIB)))
    assert items["scratch"] == 8 * 4 * (1024 + 32768) + SAMPLER_SCRATCH
    assert items["scratch"] + items["canary"] == canary


def test_every_thread_has_room_for_the_codes_of_a_quantized_layer() -> None:
    codes = replace(PROGRAM.slots[0], quant=QuantSpec(bits=4, group_size=128, int8_rows=True))
    program = replace(PROGRAM, slots=(codes, *PROGRAM.slots[1:]))
    plain = bytes_of(fit(replace(REQUEST, num_threads=3), memory_of(16 * GIB)))["scratch"]
    request = replace(REQUEST, program=program, num_threads=3)
    assert bytes_of(fit(request, memory_of(16 * GIB)))["scratch"] - plain == 3 * CODES_BYTES


def test_a_context_above_the_models_own_is_an_error() -> None:
    with pytest.raises(ConfigError, match="10,000, the model's max_position_embeddings is 8,192"):
        fit(replace(REQUEST, max_model_len=10_000), memory_of(16 * GIB))


def test_weights_that_do_not_fit_are_refused_with_both_numbers() -> None:
    with pytest.raises(CapacityError, match=r"weights 128 MiB.*100 MiB available \(a test\)"):
        fit(REQUEST, memory_of(100 * MIB))


def test_asked_kv_memory_is_taken_as_it_is_and_refused_when_it_is_not_there() -> None:
    request = replace(REQUEST, kv_memory_bytes=400 * BLOCK_BYTES + 1)
    assert fit(request, memory_with_kv(250 * BLOCK_BYTES)).kv.num_blocks == (400,)
    with pytest.raises(CapacityError, match="--kv-cache-memory-bytes is"):
        fit(request, memory_with_kv(150 * BLOCK_BYTES))


def test_asked_kv_memory_is_not_exceeded_by_what_all_sequences_could_use() -> None:
    request = replace(REQUEST, kv_memory_bytes=4000 * BLOCK_BYTES)
    assert fit(request, memory_of(16 * GIB)).kv.num_blocks == (2048,)


@given(
    kv_blocks=st.integers(1, 5000),
    max_num_seqs=st.integers(1, 64),
    budget=st.integers(1, 1024),
    windows=st.sampled_from([(0,), (0, 1000), (4096,), (0, 0, 100)]),
)
def test_the_kv_cache_never_exceeds_its_budget_and_holds_one_sequence(
    kv_blocks: int, max_num_seqs: int, budget: int, windows: tuple[int, ...]
) -> None:
    groups = tuple(KvGroupSpec(2, 4, 64, window) for window in windows)
    request = FitRequest(
        replace(PROGRAM, kv_groups=groups), DType.BFLOAT16, 8192, 32, max_num_seqs, budget
    )
    rows = min(max_num_seqs + EXTRA_ROWS, budget)
    scratch = 4 * (1024 * budget + 32768 * rows) + SAMPLER_SCRATCH
    blocks = sum(kv_block_bytes(group, 32, KvDType.BFLOAT16) for group in groups)
    canary = max(0, canary_bytes(request.program, 1, None, blocks) - scratch)
    fixed = WEIGHTS_BYTES + scratch + RUNTIME_BYTES + canary
    try:
        fitted = fit(request, memory_of(fixed + 2 * kv_blocks * BLOCK_BYTES))
    except CapacityError:
        assert kv_blocks <= 3 * len(windows)
        return
    assert sum(fitted.kv.num_blocks) <= kv_blocks
    for window, num_blocks in zip(windows, fitted.kv.num_blocks):
        if window == 0:
            assert num_blocks * 32 >= fitted.limits.max_model_len
        else:
            assert num_blocks * 32 >= min(window, fitted.limits.max_model_len)


def test_buffers_within_tiles_take_no_memory_and_what_split_attention_leaves_does() -> None:
    buffers = (BufferSpec("hidden", 1024), BufferSpec("gate_up", 16384))
    program = replace(PROGRAM, buffers=buffers)
    plain = replace(REQUEST, program=program, num_threads=4)
    fused = replace(plain, fusion=Fusion(tile_buffers=frozenset({1})))
    before = bytes_of(fit(plain, memory_of(16 * GIB)))["scratch"]
    after = bytes_of(fit(fused, memory_of(16 * GIB)))["scratch"]
    assert before - after == 4 * 16384 * 512 - 4 * (SPLIT_BYTES + TILE_BYTES)
    alone = replace(fused, num_threads=1)  # one thread splits nothing
    fourth = after - bytes_of(fit(alone, memory_of(16 * GIB)))["scratch"]
    assert fourth == 4 * SPLIT_BYTES + 3 * (TILE_BYTES + SAMPLER_SCRATCH)
