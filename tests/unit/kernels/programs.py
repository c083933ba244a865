"""Small programs written by hand, so that a kernel can be driven through the executor alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tests.contract.plan_builder import Chunk, PlanBuilder, Track

from hearth.core.program import (
    Attend,
    BufferRows,
    BufferSpec,
    Embed,
    KvGroupSpec,
    KvWrite,
    Linear,
    Op,
    Sample,
    Select,
    StepProgram,
)
from hearth.core.spec import DType, KvDType, QuantSpec, SlotKind, WeightSlot
from hearth.core.step import KvConfig, StepLimits
from hearth.kernels.cpu.executor import CpuExecutor
from hearth.kernels.cpu.library import runnable_isas
from hearth.kernels.cpu.weights import CpuWeights
from hearth.kernels.packing import HostTensor

ISAS = tuple(reversed(runnable_isas()))  # the plainest first


@dataclass(frozen=True)
class Bench:
    """How an executor is built around a program."""

    threads: int = 1
    isa: str = "auto"
    max_tokens: int = 256
    block_size: int = 16
    num_blocks: int = 64
    kv_dtype: DType | KvDType = DType.FLOAT32
    rotates_keys: bool = True


def slot(
    name: str, kind: SlotKind, rows: int, cols: int = 1, dtype: DType = DType.FLOAT32
) -> WeightSlot:
    """A slot without sources: the test puts its array in itself."""
    return WeightSlot(name, kind, rows, cols, (), QuantSpec(dtype))


def host_tensor(array: NDArray[np.float32]) -> HostTensor:
    """A float32 array as it would lie in a file."""
    data = np.ascontiguousarray(array, np.float32)
    return HostTensor(data.view(np.uint8).reshape(-1), DType.FLOAT32, data.shape)


def build(
    program: StepProgram, arrays: dict[str, NDArray[np.float32]], bench: Bench
) -> CpuExecutor:
    """An executor with the given arrays as weights."""
    weights = CpuWeights(program)
    for weight in program.slots:
        weights.put(weight, 0, host_tensor(arrays[weight.name]))
    limits = StepLimits(bench.max_tokens, 16, bench.max_tokens, 4096)
    kv = KvConfig(
        bench.block_size,
        (bench.num_blocks,) * len(program.kv_groups),
        bench.kv_dtype,
        bench.rotates_keys,
    )
    return CpuExecutor(program, weights, limits, kv, bench.threads, bench.isa)


def linear_program(vocab: int, hidden: int, out: int, dtype: DType, *, bias: bool) -> StepProgram:
    """Token ids choose rows of a table, which go through one linear layer into buffer 1."""
    slots = [
        slot("table", SlotKind.TABLE, vocab, hidden),
        slot("weight", SlotKind.LINEAR, out, hidden, dtype),
    ]
    if bias:
        slots.append(slot("bias", SlotKind.VECTOR, out))
    buffers = (BufferSpec("x", hidden), BufferSpec("y", out))
    ops: tuple[Op, ...] = (Embed("table", 0), Linear(0, "weight", "bias" if bias else None, 1))
    return StepProgram(buffers, ops, tuple(slots), (), vocab)


def sample_program(vocab: int) -> StepProgram:
    """Row i of the table is a logits row: token i asks for a sample of it."""
    buffers = (BufferSpec("x", vocab), BufferSpec("logits", vocab, BufferRows.LOGITS))
    ops: tuple[Op, ...] = (Embed("table", 0), Select(0, 1), Sample(1))
    return StepProgram(buffers, ops, (slot("table", SlotKind.TABLE, vocab, vocab),), (), vocab)


@dataclass(frozen=True)
class Heads:
    """Shape of an attention."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int = 0
    soft_cap: float = 0.0
    rounded: bool = False


def attention_program(vocab: int, heads: Heads) -> StepProgram:
    """Rows of the table are q, k, v rows; buffer 1 takes the attention."""
    width = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim
    shape = (heads.num_heads, heads.num_kv_heads, heads.head_dim)
    buffers = (BufferSpec("qkv", width), BufferSpec("out", heads.num_heads * heads.head_dim))
    scale = heads.head_dim**-0.5
    ops: tuple[Op, ...] = (
        Embed("table", 0),
        KvWrite(0, 0, 0, *shape),
        Attend(
            0,
            1,
            0,
            0,
            *shape,
            scale=scale,
            window=heads.window,
            soft_cap=heads.soft_cap,
            rounded=heads.rounded,
        ),
    )
    groups = (KvGroupSpec(1, heads.num_kv_heads, heads.head_dim, heads.window),)
    return StepProgram(buffers, ops, (slot("table", SlotKind.TABLE, vocab, width),), groups, vocab)


def to_bfloat16(array: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rounded to nearest even, back in float32."""
    bits = array.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32)


def causal_attention(qkv: NDArray[np.float32], heads: Heads) -> NDArray[np.float64]:
    """The plain definition in float64; qkv [tokens, width] → [tokens, heads · head_dim]."""
    num, dim = len(qkv), heads.head_dim
    rows = qkv.astype(np.float64).reshape(num, -1, dim)
    q = rows[:, : heads.num_heads]
    q = to_bfloat16(q).astype(np.float64) if heads.rounded else q
    k = rows[:, heads.num_heads : heads.num_heads + heads.num_kv_heads]
    v = rows[:, heads.num_heads + heads.num_kv_heads :]
    group = heads.num_heads // heads.num_kv_heads
    distance = np.arange(num)[:, None] - np.arange(num)[None, :]
    hidden = (distance < 0) | ((distance >= heads.window) if heads.window else False)
    out = np.empty((num, heads.num_heads, dim))
    for h in range(heads.num_heads):
        scores = q[:, h] @ k[:, h // group].T * dim**-0.5
        if heads.soft_cap:
            scores = np.tanh(scores / heads.soft_cap) * heads.soft_cap
        scores[hidden] = -np.inf
        powers = scores * np.log2(np.e)
        weights = 2 ** (powers - np.round(powers.max(axis=1, keepdims=True)))
        weights = to_bfloat16(weights).astype(np.float64) if heads.rounded else weights
        out[:, h] = weights / weights.sum(axis=1, keepdims=True) @ v[:, h // group]
    return out.reshape(num, -1)


def int32(values: Sequence[int]) -> NDArray[np.int32]:
    """A plan array."""
    return np.array(values, np.int32)


def run_chunks(
    executor: CpuExecutor, builder: PlanBuilder, track: Track, chunks: Sequence[int]
) -> NDArray[np.float32]:
    """What an attention program's steps of so many tokens leave in its last buffer."""
    rows = []
    for size in chunks:
        executor.execute(builder.plan([Chunk(track, size)]))
        rows.append(executor.read_buffer(1, size))
    return np.concatenate(rows)


def run_chunked(
    arrays: dict[str, NDArray[np.float32]], heads: Heads, tokens: list[int], bench: Bench
) -> NDArray[np.float32]:
    """The rows of 700 tokens, the same bits however they come."""
    outputs = []
    for chunks in ([700], [1] * 40 + [60, 500, 99, 1], [513, 187]):
        executor = build(attention_program(len(arrays["table"]), heads), arrays, bench)
        builder = PlanBuilder(bench.block_size, bench.num_blocks, seed=len(chunks))
        outputs.append(run_chunks(executor, builder, Track(tokens), chunks))
        executor.close()
    assert all(output.tobytes() == outputs[0].tobytes() for output in outputs)
    return outputs[0]


def run_after_poison(
    arrays: dict[str, NDArray[np.float32]], heads: Heads, tokens: list[int], bench: Bench
) -> list[NDArray[np.float32]]:
    """The rows of 80 tokens, chunked three ways, in blocks that held only token 0 before, NaN."""
    executor = build(attention_program(len(arrays["table"]), heads), arrays, bench)
    blocks, outputs = list(range(bench.num_blocks)), []
    num_slots = bench.num_blocks * bench.block_size
    for chunks in ([1, 1, 3, 12, 1, 17, 45], [80], [33, 2, 45]):
        builder = PlanBuilder(bench.block_size, bench.num_blocks)
        poison = Track([0] * num_slots, blocks=[*blocks])
        seen = run_chunks(executor, builder, poison, [num_slots])
        assert np.isnan(seen).all(), "NaN has to show where it is seen"
        outputs.append(run_chunks(executor, builder, Track(tokens, blocks=[*blocks]), chunks))
    executor.close()
    return outputs
