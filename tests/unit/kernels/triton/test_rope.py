"""Angles, head norms, rotation and the write into the cache, in Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import tests.support.triton_exact  # noqa: F401 -- before the kernels: chooses the interpreter
import torch
from tests.unit.kernels.triton.paged import view_of

from hearth.core.errors import KernelError
from hearth.core.program import (
    Angles,
    BufferSpec,
    Embed,
    Emit,
    HeadNorm,
    KvGroupSpec,
    Op,
    Rope,
    StepProgram,
)
from hearth.core.spec import KvDType, RopePairing, RopeSpec
from hearth.kernels.reference.forward import forward
from hearth.kernels.reference.kv import PassKv, StepTensors
from hearth.kernels.reference.kv_codes import code_values
from hearth.kernels.triton.kv import KvCache
from hearth.kernels.triton.kv_layout import device_block_bytes
from hearth.kernels.triton.rope import (
    HeadNorms,
    HeadShape,
    angles,
    rope_and_write,
    rope_in_place,
)


def rope_of(
    rotary: int,
    pairing: RopePairing = RopePairing.HALF,
    sections: tuple[int, ...] = (),
    scaling: float = 1.0,
) -> RopeSpec:
    half = rotary // 2
    return RopeSpec(
        rotary, pairing, tuple(10000.0 ** (-i / half) for i in range(half)), sections, scaling
    )


@dataclass(frozen=True)
class Case:
    heads: HeadShape
    rope: RopeSpec
    norms: bool = False
    rows: torch.dtype = torch.float32


CASES = [
    Case(HeadShape(4, 2, 16), rope_of(16)),
    Case(HeadShape(9, 3, 20), rope_of(10, scaling=0.7)),  # partial, more than a tile of heads
    Case(HeadShape(4, 1, 16), rope_of(16, RopePairing.INTERLEAVED)),
    Case(HeadShape(2, 1, 24), rope_of(12, RopePairing.INTERLEAVED, (1, 3, 2))),
    Case(HeadShape(4, 2, 32), rope_of(32, sections=(4, 6, 6)), norms=True),
    Case(HeadShape(2, 2, 20), rope_of(8), norms=True, rows=torch.bfloat16),
    Case(HeadShape(10, 9, 6), rope_of(6), norms=True),
]
NUM_ROWS = 5


def reference(case: Case, qkv, positions, q_weight, k_weight):  # type: ignore[no-untyped-def]
    """Rows with q and k normed and rotated."""
    heads = case.heads
    shape = (heads.num_heads, heads.num_kv_heads, heads.head_dim)
    ops: list[Op] = [Embed("table", 0), Angles(case.rope, 1)]
    if case.norms:
        ops.append(HeadNorm(0, "q", "k", 1e-6, *shape))
    ops += [Rope(0, 1, shape[0] + shape[1], shape[2], case.rope), Emit(0)]
    buffers = (BufferSpec("qkv", qkv.shape[1]), BufferSpec("angles", case.rope.rotary_dim))
    step = StepTensors(
        tokens=torch.arange(len(qkv)),
        positions=positions,
        sequences=(),
        logit_rows=torch.zeros(0, dtype=torch.long),
    )
    weights = {"table": qkv.float(), "q": q_weight, "k": k_weight}
    return forward(StepProgram(buffers, tuple(ops), (), (), 1), weights, step, PassKv())


def inputs(case: Case):  # type: ignore[no-untyped-def]
    """Rows, positions (three different ones, far ones too), and norm weights."""
    generator = torch.Generator().manual_seed(1)
    heads = case.heads
    width = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim
    qkv = torch.randn(NUM_ROWS, width, generator=generator).to(case.rows)
    positions = torch.tensor([[0, 1, 5, 1000, 30000], [3, 1, 0, 7, 9], [2, 2, 9, 40, 1]])
    weights = torch.rand(2, heads.head_dim, generator=generator) + 0.5
    return qkv, positions.to(torch.int32), weights[0], weights[1]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_queries_turn_in_place_and_keys_on_their_way_into_the_cache(case: Case) -> None:
    qkv, positions, q_weight, k_weight = inputs(case)
    expected = reference(case, qkv, positions, q_weight, k_weight)
    heads, dim = case.heads, case.heads.head_dim
    table = torch.empty(NUM_ROWS, case.rope.rotary_dim)
    angles(positions, case.rope, table)
    norms = HeadNorms(q_weight, k_weight, 1e-6) if case.norms else None
    groups = (KvGroupSpec(2, heads.num_kv_heads, dim),)
    cache = KvCache(groups, (3,), 16, KvDType.FLOAT32, "cpu")
    slots = torch.tensor([17, 3, -1, 47, 18], dtype=torch.int32)
    got = qkv.clone()
    rope_and_write(got, table, slots, cache, 0, 1, heads, case.rope, norms)
    q_width, kv_width = heads.num_heads * dim, heads.num_kv_heads * dim
    tolerance = 3e-5 if case.rows == torch.float32 else 2e-2
    assert (got[:, :q_width] - expected[:, :q_width]).abs().max() < tolerance
    assert torch.equal(got[:, q_width:], qkv[:, q_width:])
    view = view_of(cache, 0, 1).elements
    for row, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        stored = view[slot // 16, :, :, slot % 16].flatten(1)
        keys = expected[row, q_width : q_width + kv_width]
        assert (stored[0] - keys).abs().max() < 3e-5
        assert torch.equal(stored[1], qkv[row, q_width + kv_width :].float())
    assert torch.count_nonzero(cache.group(0).data).item() == torch.count_nonzero(view).item()
    assert torch.count_nonzero(view.abs().sum((1, 2, 4))).item() == 4, "a row without a slot"

    whole = qkv.clone()
    rope_in_place(whole, table, heads, case.rope, norms)
    assert (whole.float() - expected).abs().max() < tolerance


@pytest.mark.parametrize("dtype", [KvDType.INT8, KvDType.FP8])
@pytest.mark.parametrize("dim", [5, 24])
def test_codes_are_those_of_the_reference_bit_for_bit(dtype: KvDType, dim: int) -> None:
    heads = HeadShape(1, 3, dim)
    rows = np.random.default_rng(2).normal(0, 1, (6, 7 * dim)).astype(np.float32)
    rows *= np.array([1e-33, 1e-20, 0.01, 1, 50, 1e20], np.float32)[:, None]
    rows[0, dim : 2 * dim] = 0
    rows[3, dim * 2 + 1], rows[3, dim * 5 + 4] = np.nan, np.inf
    qkv = torch.from_numpy(rows)
    cache = KvCache((KvGroupSpec(1, 3, dim),), (1,), 16, dtype, "cpu")
    slots = torch.arange(6, dtype=torch.int32)
    with np.errstate(invalid="ignore"):
        rope_and_write(qkv.clone(), None, slots, cache, 0, 0, heads, None)
    view = view_of(cache, 0, 0)
    codes, scales = view.elements[0, :, :, :6], view.scales[0, :, :, :6].float()
    numbers = codes.float() if dtype is KvDType.INT8 else codes.view(torch.float8_e4m3fn).float()
    expected = code_values(qkv[:, dim:].reshape(6, 2, 3, dim), dtype)
    assert torch.equal(numbers.permute(2, 0, 1, 3), expected.codes)
    wanted = expected.scales[..., 0]
    assert torch.equal(scales.permute(2, 0, 1).nan_to_num(-1), wanted.nan_to_num(-1))


def test_every_eight_bit_float_and_what_lies_between_two_is_stored_as_torch_has_it() -> None:
    bits = torch.arange(0x7F, dtype=torch.uint8)
    numbers = bits.view(torch.float8_e4m3fn).float()
    middles = (numbers[1:] + numbers[:-1]) / 2
    near = torch.cat([numbers, -numbers, middles, torch.nextafter(middles, torch.tensor(0.0))])
    near = torch.cat([near, torch.ones(-len(near) % 127)]).reshape(-1, 127)
    values = torch.cat([near, torch.full((len(near), 1), 448.0)], dim=1)  # the scale is 1
    qkv = torch.cat([torch.zeros(len(values), 256), values], dim=1)
    cache = KvCache((KvGroupSpec(1, 1, 128),), (1,), 16, KvDType.FP8, "cpu")
    slots = torch.arange(len(values), dtype=torch.int32)
    rope_and_write(qkv, None, slots, cache, 0, 0, HeadShape(1, 1, 128), None)
    stored = view_of(cache, 0, 0).elements[0, 1, 0, : len(values)]
    assert torch.equal(stored, values.to(torch.float8_e4m3fn).view(torch.uint8))


def test_a_block_is_copied_in_all_layers() -> None:
    groups = (KvGroupSpec(1, 1, 8), KvGroupSpec(3, 2, 8))
    cache = KvCache(groups, (2, 4), 16, KvDType.INT8, "cpu")
    data = cache.group(1).data
    data.copy_(torch.randint(-128, 127, data.shape, dtype=torch.int8))
    before = data.clone()
    cache.copy_blocks(np.array([[1, 2, 0], [1, 0, 3]], np.int32).tolist())
    assert torch.equal(data[0], before[2])
    assert torch.equal(data[3], before[2])
    assert torch.equal(data[1:3], before[1:3])


@pytest.mark.parametrize(
    ("dtype", "token_bytes"),
    [(KvDType.FLOAT32, 64), (KvDType.BFLOAT16, 32), (KvDType.INT8, 20), (KvDType.FP8, 20)],
)
def test_a_blocks_bytes_are_what_is_allocated(dtype: KvDType, token_bytes: int) -> None:
    spec = KvGroupSpec(3, 2, 8)
    assert device_block_bytes(spec, 32, dtype) == 3 * 2 * 32 * token_bytes
    cache = KvCache((spec,), (5,), 32, dtype, "cpu")
    assert cache.num_bytes == 5 * device_block_bytes(spec, 32, dtype)


def test_int4_is_refused_by_name() -> None:
    with pytest.raises(KernelError, match=r"int4.*permitted: bfloat16") as raised:
        KvCache((KvGroupSpec(1, 1, 16),), (1,), 16, KvDType.INT4, "cpu")
    assert raised.value.hint
