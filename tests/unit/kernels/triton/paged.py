"""Attention over a paged cache, by the kernels and by the torch reference, from the same plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from tests.contract.plan_builder import Chunk, PlanBuilder, Track

from hearth.core.program import (
    Attend,
    BufferSpec,
    Embed,
    Emit,
    KvGroupSpec,
    KvWrite,
    StepProgram,
)
from hearth.core.spec import KvDType
from hearth.core.step import KvConfig, StepPlan
from hearth.kernels.reference.forward import forward
from hearth.kernels.reference.kv import GroupTables, PagedKv, SequenceRows, StepTensors
from hearth.kernels.reference.kv_codes import code_values
from hearth.kernels.triton.attention import (
    AttentionShape,
    StepTables,
    attend,
    attend_decode,
    decode_scratch_floats,
)
from hearth.kernels.triton.kv import KvCache


def shape(
    heads: int, kv_heads: int, dim: int, *, window: int = 0, soft_cap: float = 0.0
) -> AttentionShape:
    """With the usual scale."""
    return AttentionShape(heads, kv_heads, dim, dim**-0.5, window, soft_cap)


GROUP, LAYER = 1, 1  # of two groups with two layers: strides that are left out would show


@dataclass(frozen=True)
class Case:
    """A shape of attention and of its cache; lengths of the sequences when all is computed."""

    shape: AttentionShape
    dtype: KvDType = KvDType.FLOAT32
    rows: torch.dtype = torch.float32
    block_size: int = 16
    device: str = "cpu"

    @property
    def width(self) -> int:
        """Of a q, k, v row."""
        return (self.shape.num_heads + 2 * self.shape.num_kv_heads) * self.shape.head_dim


@dataclass
class Paged:
    """A cache of the kernels, with blocks handed out in a shuffled order."""

    case: Case
    num_blocks: int = 64
    cache: KvCache = field(init=False)
    builder: PlanBuilder = field(init=False)

    def __post_init__(self) -> None:
        shape = self.case.shape
        other = KvGroupSpec(2, 1, 16)
        spec = KvGroupSpec(2, shape.num_kv_heads, shape.head_dim, shape.window)
        counts = (4, self.num_blocks)
        self.cache = KvCache(
            (other, spec), counts, self.case.block_size, self.case.dtype, self.case.device
        )
        self.builder = PlanBuilder(self.case.block_size, self.num_blocks, num_groups=2)

    def write(self, qkv: torch.Tensor, plan: StepPlan) -> None:
        """Stores the keys and values of a step, plainly."""
        shape, dtype = self.case.shape, self.case.dtype
        heads = qkv.float().cpu().reshape(len(qkv), -1, shape.head_dim)
        keys = heads[:, shape.num_heads : shape.num_heads + shape.num_kv_heads]
        values = heads[:, shape.num_heads + shape.num_kv_heads :]
        view = view_of(self.cache, GROUP, LAYER)
        slots = torch.from_numpy(plan.slots[GROUP]).long()
        block, place = slots // self.case.block_size, slots % self.case.block_size
        for index, rows in enumerate((keys, values)):
            if not dtype.is_coded:
                view.elements[block, index, :, place] = rows.to(view.elements)
                continue
            coded = code_values(rows, dtype)
            codes = coded.codes.to(torch.int8 if dtype is KvDType.INT8 else torch.float8_e4m3fn)
            codes = codes.view(view.elements.dtype).to(view.elements.device)
            view.elements[block, index, :, place] = codes
            view.scales[block, index, :, place] = coded.scales[..., 0].to(view.scales)

    def attend(self, qkv: torch.Tensor, plan: StepPlan) -> torch.Tensor:
        """Of any rows."""
        out = self.empty(len(qkv))
        tables = tables_of(plan, self.case.device, len(qkv))
        attend(qkv, out, self.cache, GROUP, LAYER, tables, self.case.shape)
        return out

    def attend_decode(
        self,
        qkv: torch.Tensor,
        plan: StepPlan,
        num_runs: int,
        *,
        has_scratch: bool = True,
        is_counted: bool = False,
    ) -> torch.Tensor:
        """Of steps of one row a sequence."""
        shape, device, out = self.case.shape, self.case.device, self.empty(len(qkv))
        tokens, count = len(plan.blocks) * self.case.block_size, len(plan.context)
        size = decode_scratch_floats(count, tokens, shape.num_heads, shape.head_dim)
        scratch = torch.full((size if has_scratch else 0,), torch.nan, device=device)
        counters = None
        if is_counted:
            counters = torch.zeros(count * shape.num_kv_heads, dtype=torch.int32, device=device)
        attend_decode(
            qkv,
            out,
            self.cache,
            GROUP,
            LAYER,
            tables_of(plan, device, len(qkv)),
            shape,
            scratch,
            num_runs,
            counters,
        )
        assert counters is None or not counters.any()
        return out

    def empty(self, num_rows: int) -> torch.Tensor:
        """For results: NaN where a kernel writes nothing."""
        width = self.case.shape.num_heads * self.case.shape.head_dim
        return torch.full(
            (num_rows, width), torch.nan, dtype=self.case.rows, device=self.case.device
        )


@dataclass(frozen=True)
class View:
    """A layer of a cache: elements [blocks, 2, kv heads, block_size, head_dim], and scales."""

    elements: torch.Tensor
    scales: torch.Tensor


def view_of(cache: KvCache, group: int, layer: int) -> View:
    """Written down once more, from docs/cuda.md."""
    stored = cache.group(group)
    heads, dim, size = (
        stored.layout.spec.num_kv_heads,
        stored.layout.spec.head_dim,
        stored.layout.block_size,
    )
    head = size * dim + (2 * size if cache.dtype.is_coded else 0)
    by_head = stored.data.reshape(len(stored.data), -1, 2, heads, head)[:, layer]
    elements = by_head[..., : size * dim].reshape(*by_head.shape[:-1], size, dim)
    if not cache.dtype.is_coded:
        return View(elements, elements)
    halves = stored.scales.reshape(len(stored.data), -1, 2, heads, head // 2)[:, layer]
    return View(elements, halves[..., size * dim // 2 :])


def tables_of(plan: StepPlan, device: str, num_rows: int) -> StepTables:
    """The tables of group `GROUP`; rows that the plan does not have belong to no sequence."""
    counts = np.diff(plan.row_start)
    owners = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    arrays = (
        plan.row_start,
        plan.context,
        plan.blocks,
        plan.block_start[GROUP],
        plan.first_block[GROUP],
        np.append(owners, np.full(num_rows - len(owners), -1)),
    )
    return StepTables(*(torch.from_numpy(np.array(a, np.int32)).to(device) for a in arrays))


def random_rows(case: Case, num_rows: int, seed: int) -> torch.Tensor:
    """Rows of q, k, v in the type of the rows; some channels far larger, as keys have them."""
    rows = np.random.default_rng(seed).normal(0, 1, (num_rows, case.width)).astype(np.float32)
    rows[:, 3::37] *= 4
    return torch.from_numpy(rows).to(case.rows).to(case.device)


def without_hidden_blocks(plan: StepPlan, window: int, block_size: int) -> StepPlan:
    """The same plan where blocks that lie before every row's window are not listed."""
    first = np.maximum(plan.context - window + 1, 0) // block_size
    start = plan.block_start[GROUP]
    lists = [plan.blocks[start[s] + f : start[s + 1]] for s, f in enumerate(first.tolist())]
    starts = np.cumsum([0, *map(len, lists)]).astype(np.int32)
    return replace(
        plan,
        blocks=np.concatenate(lists).astype(np.int32),
        block_start=np.stack([starts] * 2),
        first_block=np.stack([first.astype(np.int32)] * 2),
    )


def chunks_of(tracks: Sequence[Track], counts: Sequence[int]) -> list[Chunk]:
    """The next so many tokens of each track; none: it is left out."""
    return [Chunk(track, count) for track, count in zip(tracks, counts) if count]


def new_track(length: int) -> Track:
    """A sequence whose tokens stand for nothing."""
    return Track([0] * length)


class Reference:
    """The torch reference over a paged cache of its own."""

    def __init__(self, case: Case, num_blocks: int = 64, *, rounded: bool = False) -> None:
        shape = case.shape
        self._case = case
        spec = KvGroupSpec(1, shape.num_kv_heads, shape.head_dim, shape.window)
        self._kv = PagedKv((spec,), KvConfig(case.block_size, (num_blocks,), case.dtype))
        heads = (shape.num_heads, shape.num_kv_heads, shape.head_dim)
        attention = Attend(
            0, 1, 0, 0, *heads, shape.scale, shape.window, shape.soft_cap, rounded=rounded
        )
        buffers = (
            BufferSpec("qkv", case.width),
            BufferSpec("out", shape.num_heads * shape.head_dim),
        )
        ops = (Embed("table", 0), KvWrite(0, 0, 0, *heads), attention, Emit(1))
        self._program = StepProgram(buffers, ops, (), (spec,), 1)

    def attend(self, qkv: torch.Tensor, plan: StepPlan) -> torch.Tensor:
        """Stores the step's keys and values, and attends."""
        start, blocks = plan.block_start[GROUP], torch.from_numpy(plan.blocks).long()
        group = GroupTables(
            torch.from_numpy(plan.slots[GROUP]).long(),
            tuple(blocks[a:b] for a, b in pairwise(start)),
            tuple(plan.first_block[GROUP].tolist()),
        )
        rows = zip(plan.row_start.tolist(), plan.row_start[1:].tolist(), plan.context.tolist())
        step = StepTensors(
            tokens=torch.arange(len(qkv)),
            positions=torch.zeros(3, len(qkv)),
            sequences=tuple(SequenceRows(*each) for each in rows),
            logit_rows=torch.zeros(0, dtype=torch.long),
            groups=(group,),
        )
        return forward(self._program, {"table": qkv.float().cpu()}, step, self._kv)
