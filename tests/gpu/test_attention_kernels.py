"""Attention, rope and the KV cache on a card: against the torch reference, and bit for bit.

Run alone (`pytest -m gpu tests/gpu`): where another test has chosen Triton's interpreter in the
same process, these are skipped.
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.contract.plan_builder import Track
from tests.unit.kernels.triton.paged import (
    GROUP,
    LAYER,
    Case,
    Paged,
    Reference,
    chunks_of,
    new_track,
    random_rows,
    shape,
    tables_of,
    view_of,
    without_hidden_blocks,
)

from hearth.core.program import KvGroupSpec
from hearth.core.spec import KvDType, RopePairing, RopeSpec
from hearth.core.step import StepPlan
from hearth.kernels.reference.kv_codes import code_values

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="Triton's interpreter is chosen"),
]

HAS_BFLOAT16 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
ROWS = torch.bfloat16 if HAS_BFLOAT16 else torch.float16
FLOATS = KvDType.BFLOAT16 if HAS_BFLOAT16 else KvDType.FLOAT16
CASES = [
    Case(shape(32, 2, 128), FLOATS, ROWS, 16, "cuda"),
    Case(shape(32, 8, 128), FLOATS, ROWS, 64, "cuda"),
    Case(shape(28, 4, 128), KvDType.INT8, ROWS, 64, "cuda"),
    Case(shape(32, 2, 128), KvDType.FP8, ROWS, 32, "cuda"),
    Case(shape(8, 4, 256, window=512, soft_cap=50.0), FLOATS, ROWS, 128, "cuda"),
    Case(shape(12, 12, 64, window=100), KvDType.FP8, ROWS, 256, "cuda"),
    Case(shape(7, 1, 80), KvDType.INT8, torch.float16, 16, "cuda"),
    Case(shape(4, 2, 64), KvDType.FLOAT16, torch.float16, 64, "cuda"),
]
LENGTHS = (1, 63, 64, 65, 511, 513, 1500)
NUM_BLOCKS = 400


def stored(case: Case) -> tuple[Paged, list[Track], torch.Tensor, StepPlan]:
    """Sequences of all lengths in a cache, their rows, and the plan of all rows at once."""
    paged = Paged(case, NUM_BLOCKS)
    tracks = [new_track(length) for length in LENGTHS]
    plan = paged.builder.plan(chunks_of(tracks, LENGTHS))
    qkv = random_rows(case, len(plan.tokens), 1)
    paged.write(qkv, plan)
    return paged, tracks, qkv, plan


def part(paged: Paged, pieces: list[tuple[Track, int, int]]) -> StepPlan:
    """A plan of rows first … last − 1 of tracks that are stored already."""
    chunks = []
    for track, first, last in pieces:
        view = replace(track, num_computed=first, blocks=list(track.blocks))
        chunks += chunks_of([view], [last - first])
    plan = paged.builder.plan(chunks)
    window = paged.case.shape.window
    return without_hidden_blocks(plan, window, paged.case.block_size) if window else plan


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_equals_the_reference(case: Case) -> None:
    paged, tracks, qkv, plan = stored(case)
    reference = Reference(case, NUM_BLOCKS, rounded=case.rows == torch.bfloat16)
    expected = reference.attend(qkv, plan)
    tolerance = (6e-3 if case.rows == torch.bfloat16 else 2e-3) * expected.abs().max()
    got = paged.attend(qkv, plan).float().cpu()
    assert (got - expected).abs().max() < tolerance
    last = plan.row_start[1:] - 1
    step = part(paged, [(t, n - 1, n) for t, n in zip(tracks, LENGTHS)])
    for runs in (1, 3, 64):
        got = paged.attend_decode(qkv[last], step, runs).float().cpu()
        assert (got - expected[last]).abs().max() < tolerance


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_row_has_the_same_bits_in_decode_and_in_chunks_alone_and_in_company(case: Case) -> None:
    paged, tracks, qkv, plan = stored(case)
    whole = paged.attend(qkv, plan)
    first = int(plan.row_start[-2])
    long = tracks[-1]
    for size in (1, 7, 64, 300):
        for begin in (0, 250, 511, 1100):
            chunk = part(paged, [(long, begin, begin + size)])
            rows = slice(first + begin, first + begin + size)
            assert torch.equal(paged.attend(qkv[rows], chunk), whole[rows]), (size, begin)
    positions = [0, 63, 64, 255, 256, 511, 512, 777, 1499]
    places = [first + position for position in positions]
    for of in (positions, positions[-1:]):
        step = part(paged, [(long, p, p + 1) for p in of])
        own = places[-len(of) :]
        for runs in (1, 2, 5, 64):
            got = paged.attend_decode(qkv[own], step, runs)
            assert torch.equal(got, whole[own]), (runs, (got != whole[own]).sum())
        for runs in (2, 64):
            got = paged.attend_decode(qkv[own], step, runs, is_counted=True)
            assert torch.equal(got, whole[own]), "counted"
        got = paged.attend_decode(qkv[own], step, 2, has_scratch=False)
        assert torch.equal(got, whole[own])


def test_a_captured_decode_step_follows_its_tables() -> None:
    from hearth.kernels.triton.attention import attend_decode, decode_scratch_floats

    case = CASES[0]
    paged, tracks, qkv, plan = stored(case)
    whole = paged.attend(qkv, plan)
    first = int(plan.row_start[-2])
    long, place = tracks[-1], case.shape
    steps = [[100, 300], [1499, 5]]
    plans = [part(paged, [(long, p, p + 1) for p in step]) for step in steps]
    room = max(len(p.blocks) for p in plans)
    plans = [replace(p, blocks=np.pad(p.blocks, (0, room - len(p.blocks)))) for p in plans]
    tables = tables_of(plans[0], "cuda", 2)
    rows = qkv[[first + p for p in steps[0]]].clone()
    out = paged.empty(2)
    size = decode_scratch_floats(2, room * case.block_size, place.num_heads, place.head_dim)
    scratch = torch.empty(size, device="cuda")

    def run() -> None:
        attend_decode(rows, out, paged.cache, GROUP, LAYER, tables, place, scratch, 8)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for step, own in zip(steps, plans):
        new = tables_of(own, "cuda", 2)
        for name in ("row_start", "context", "blocks", "block_start", "first_block"):
            getattr(tables, name).copy_(getattr(new, name))
        rows.copy_(qkv[[first + p for p in step]])
        graph.replay()
        assert torch.equal(out, whole[[first + p for p in step]])


def test_counted_parts_are_right_a_thousand_times_over() -> None:
    """A part that is read before it was stored would show sooner or later."""
    case = CASES[0]
    paged, tracks, qkv, plan = stored(case)
    whole = paged.attend(qkv, plan)
    rows = plan.row_start[1:] - 1
    step = part(paged, [(t, n - 1, n) for t, n in zip(tracks, LENGTHS)])
    for _ in range(1000):
        got = paged.attend_decode(qkv[rows], step, 4, is_counted=True)
        assert torch.equal(got, whole[rows])


@pytest.mark.parametrize("dtype", [KvDType.INT8, KvDType.FP8])
def test_codes_are_those_of_the_reference_bit_for_bit(dtype: KvDType) -> None:
    from hearth.kernels.triton.kv import KvCache
    from hearth.kernels.triton.rope import HeadShape, rope_and_write

    dim, rows = 128, 64
    qkv = torch.randn(rows, 5 * dim) * 10.0 ** torch.arange(-32, 32)[:, None].clamp(-30, 30)
    cache = KvCache((KvGroupSpec(1, 2, dim),), (4,), 16, dtype, "cuda")
    slots = torch.arange(rows, dtype=torch.int32, device="cuda")
    rope_and_write(qkv.cuda(), None, slots, cache, 0, 0, HeadShape(1, 2, dim), None)
    view = view_of(cache, 0, 0)
    codes = view.elements.permute(0, 3, 1, 2, 4).reshape(rows, 2, 2, dim).cpu()
    numbers = codes if dtype is KvDType.INT8 else codes.view(torch.float8_e4m3fn)
    scales = view.scales.permute(0, 3, 1, 2).reshape(rows, 2, 2).float().cpu()
    expected = code_values(qkv[:, dim:].reshape(rows, 2, 2, dim), dtype)
    assert torch.equal(scales, expected.scales[..., 0])
    assert torch.equal(numbers.float(), expected.codes)


def test_rotation_follows_three_positions_and_does_not_depend_on_other_rows() -> None:
    from hearth.kernels.triton.rope import HeadNorms, HeadShape, angles, rope_in_place

    half = 32
    frequencies = tuple(10000.0 ** (-i / half) for i in range(half))
    rope = RopeSpec(64, RopePairing.INTERLEAVED, frequencies, (8, 12, 12))
    heads, rows = HeadShape(32, 2, 128), 50
    positions = torch.randint(0, 100_000, (3, rows), dtype=torch.int32)
    table = torch.empty(rows, 64, device="cuda")
    angles(positions.cuda(), rope, table)
    section = torch.repeat_interleave(torch.tensor(rope.sections))
    radians = positions.float()[section].T * torch.tensor(frequencies)
    expected = torch.cat([radians.double().cos(), radians.double().sin()], dim=1)
    assert (table.cpu().double() - expected).abs().max() < 1e-6
    norms = HeadNorms(torch.rand(128, device="cuda"), torch.rand(128, device="cuda"), 1e-6)
    qkv = torch.randn(rows, 36 * 128, device="cuda").to(ROWS)
    whole, alone = qkv.clone(), qkv[7:8].clone()
    rope_in_place(whole, table, heads, rope, norms)
    rope_in_place(alone, table[7:8], heads, rope, norms)
    assert torch.equal(alone[0], whole[7])
    values = qkv.double().reshape(rows, 36, 128)[:, :34]
    normed = values * (values.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
    normed[:, :32] *= norms.q_weight.double()
    normed[:, 32:] *= norms.k_weight.double()
    pairs = torch.view_as_complex(normed[..., :64].reshape(rows, 34, half, 2).contiguous())
    turn = torch.polar(torch.ones_like(radians), radians).to(pairs)
    turned = torch.view_as_real(pairs * turn[:, None])
    normed[..., :64] = turned.flatten(-2)
    error = (whole.double().reshape(rows, 36, 128)[:, :34] - normed).abs().max()
    assert error < (3e-2 if HAS_BFLOAT16 else 4e-3)


@pytest.mark.parametrize(("heads", "dim"), [(12, 128), (16, 80), (16, 64)])
def test_images_equal_torch_and_have_the_same_bits_alone(heads: int, dim: int) -> None:
    from hearth.kernels.triton.attention_image import attend_image

    of = shape(heads, heads, dim)
    lengths = [64, 1, 700, 333]
    qkv = torch.randn(sum(lengths), 3 * heads * dim, device="cuda").to(ROWS)

    def run(rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        start = torch.tensor([0, *np.cumsum(sizes)], dtype=torch.int32, device="cuda")
        owner = torch.repeat_interleave(torch.tensor(sizes)).int().cuda()
        out = torch.empty(len(rows), heads * dim, dtype=ROWS, device="cuda")
        attend_image(rows, out, start, owner, of)
        return out

    both = run(qkv, lengths)
    for rows, got in zip(torch.split(qkv, lengths), torch.split(both, lengths)):
        assert torch.equal(run(rows, [len(rows)]), got)
        q, k, v = rows.double().reshape(len(rows), 3, heads, dim).permute(1, 2, 0, 3)
        expected = ((q @ k.mT) * of.scale).softmax(-1) @ v
        error = (got.double() - expected.transpose(0, 1).flatten(1)).abs().max()
        assert error < (3e-2 if HAS_BFLOAT16 else 4e-3)
