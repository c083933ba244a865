"""Writes a StepProgram down as the C structures of the kernel library. Owns no weight memory."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

from hearth.core.errors import KernelError
from hearth.core.program import (
    Activate,
    Add,
    Angles,
    Attend,
    Embed,
    Emit,
    Experts,
    Gate,
    GridEmbed,
    HeadNorm,
    KvWrite,
    Linear,
    Norm,
    Op,
    Patches,
    Quantize,
    Regroup,
    Rope,
    Sample,
    Select,
    SoftCap,
    StepProgram,
)
from hearth.core.spec import RopeSpec
from hearth.core.step import KvConfig, StepLimits
from hearth.kernels.cpu import abi
from hearth.kernels.cpu.weights import CpuWeights
from hearth.kernels.fuse import Fusion

_NUM_POSITION_ROWS = 3


@dataclass(slots=True)
class EncodedProgram:
    """A model description and the arrays that its pointers refer to."""

    desc: abi.CModelDesc
    keep_alive: list[object] = field(default_factory=list)


class _OpEncoder:
    """Translates operations one by one; collects the frequencies of their RoPE tables."""

    def __init__(self, program: StepProgram) -> None:
        self.weight_index = {slot.name: i for i, slot in enumerate(program.slots)}
        self.inv_freq: list[float] = []
        self._freq_offsets: dict[tuple[float, ...], int] = {}

    def encode(self, op: Op) -> abi.COp:
        match op:
            case Embed():
                return abi.COp(
                    kind=abi.OP_EMBED, weight=self._weight(op.table), out=op.out, scale=op.scale
                )
            case Angles():
                return self._angles(op)
            case Norm():
                return self._norm(op)
            case Linear():
                bias = -1 if op.bias is None else self._weight(op.bias)
                weight = self._weight(op.weight)
                return abi.COp(kind=abi.OP_LINEAR, x=op.x, weight=weight, bias=bias, out=op.out)
            case Rope():
                return abi.COp(
                    kind=abi.OP_ROPE,
                    x=op.x,
                    y=op.angles,
                    heads=op.num_heads,
                    head_dim=op.head_dim,
                    rotary_dim=op.rope.rotary_dim,
                    pairing=abi.PAIRING_CODES[op.rope.pairing],
                )
            case HeadNorm() | KvWrite() | Attend() | Experts():
                return self._composite(op)
            case Gate():
                activation = abi.ACTIVATION_CODES[op.activation]
                return abi.COp(kind=abi.OP_GATE, x=op.x, out=op.out, activation=activation)
            case Select() | Quantize():
                kind = abi.OP_SELECT if isinstance(op, Select) else abi.OP_QUANTIZE
                return abi.COp(kind=kind, x=op.x, out=op.out)
            case Add() | SoftCap() | Sample():
                return self._in_place(op)
            case Activate() | Patches() | GridEmbed() | Regroup() | Emit():
                return self._of_encoders(op)

    @staticmethod
    def _in_place(op: Add | SoftCap | Sample) -> abi.COp:
        """Small operations that write no buffer of their own."""
        match op:
            case Add():
                return abi.COp(kind=abi.OP_ADD, x=op.x, y=op.y)
            case SoftCap():
                return abi.COp(kind=abi.OP_SOFT_CAP, x=op.x, soft_cap=op.cap)
            case Sample():
                return abi.COp(kind=abi.OP_SAMPLE, x=op.logits)

    def _of_encoders(self, op: Activate | Patches | GridEmbed | Regroup | Emit) -> abi.COp:
        """Operations that only encoders have."""
        match op:
            case Activate():
                activation = abi.ACTIVATION_CODES[op.activation]
                return abi.COp(kind=abi.OP_ACTIVATE, x=op.x, activation=activation)
            case Patches():
                return abi.COp(kind=abi.OP_PATCHES, out=op.out)
            case GridEmbed():
                weight = self._weight(op.table)
                return abi.COp(kind=abi.OP_GRID_EMBED, x=op.x, weight=weight, count=op.size)
            case Regroup():
                return abi.COp(
                    kind=abi.OP_REGROUP, x=op.x, out=op.out, count=op.count, flag=op.interleaved
                )
            case Emit():
                return abi.COp(kind=abi.OP_EMIT, x=op.x)

    def _norm(self, op: Norm) -> abi.COp:
        return abi.COp(
            kind=abi.OP_NORM,
            x=op.x,
            weight=self._weight(op.weight),
            bias=-1 if op.bias is None else self._weight(op.bias),
            eps=op.eps,
            out=op.out,
            flag=op.centered,
        )

    def _composite(self, op: HeadNorm | KvWrite | Attend | Experts) -> abi.COp:
        """Operations of many fields."""
        if isinstance(op, HeadNorm):
            return self._head_norm(op)
        return self._experts(op) if isinstance(op, Experts) else self._attention(op)

    def _weight(self, name: str) -> int:
        try:
            return self.weight_index[name]
        except KeyError:
            raise KernelError(f"the program names no weight slot {name!r}") from None

    def _head_norm(self, op: HeadNorm) -> abi.COp:
        return abi.COp(
            kind=abi.OP_HEAD_NORM,
            x=op.x,
            weight=self._weight(op.q_weight),
            bias=self._weight(op.k_weight),
            heads=op.num_heads,
            kv_heads=op.num_kv_heads,
            head_dim=op.head_dim,
            eps=op.eps,
        )

    def _experts(self, op: Experts) -> abi.COp:
        router = op.router
        return abi.COp(
            kind=abi.OP_EXPERTS,
            x=op.x,
            y=op.logits,
            out=op.out,
            routes=op.routes,
            gated=op.gated,
            gated_codes=-1 if op.gated_codes is None else op.gated_codes,
            weight=self._weight(op.gate_up),
            down=self._weight(op.down),
            bias=-1 if router.bias is None else self._weight(router.bias),
            activation=abi.ACTIVATION_CODES[op.activation],
            experts=router.num_experts,
            top_k=router.top_k,
            expert_groups=router.num_groups,
            top_groups=router.top_groups,
            scoring=abi.SCORING_CODES[router.scoring],
            normalize=router.normalize,
            scale=router.scale,
        )

    def _angles(self, op: Angles) -> abi.COp:
        sections = op.rope.sections or (len(op.rope.inv_freq), 0, 0)
        if len(sections) != _NUM_POSITION_ROWS:
            raise KernelError(f"RoPE sections {list(sections)}: three are needed")
        return abi.COp(
            kind=abi.OP_ANGLES,
            out=op.out,
            rotary_dim=op.rope.rotary_dim,
            freq_offset=self._frequencies(op.rope),
            sections=(ctypes.c_int32 * 3)(*sections),
            scale=op.rope.attention_scaling,
        )

    def _frequencies(self, rope: RopeSpec) -> int:
        offset = self._freq_offsets.setdefault(rope.inv_freq, len(self.inv_freq))
        if offset == len(self.inv_freq):
            self.inv_freq.extend(rope.inv_freq)
        return offset

    @staticmethod
    def _attention(op: KvWrite | Attend) -> abi.COp:
        attends = isinstance(op, Attend)
        return abi.COp(
            kind=abi.OP_ATTEND if attends else abi.OP_KV_WRITE,
            x=op.qkv,
            out=op.out if isinstance(op, Attend) else 0,
            group=op.group,
            layer=op.layer,
            heads=op.num_heads,
            kv_heads=op.num_kv_heads,
            head_dim=op.head_dim,
            window=op.window if isinstance(op, Attend) else 0,
            scale=op.scale if isinstance(op, Attend) else 0.0,
            soft_cap=op.soft_cap if isinstance(op, Attend) else 0.0,
            flag=_attend_flags(op) if isinstance(op, Attend) else 0,
        )


def _attend_flags(op: Attend) -> int:
    return abi.ATTEND_IMAGE * (not op.causal) + abi.ATTEND_ROUNDED * op.rounded


def _encode_buffers(program: StepProgram, fusion: Fusion) -> ctypes.Array[abi.CBuffer]:
    return (abi.CBuffer * len(program.buffers))(
        *[
            abi.CBuffer(
                width=b.width,
                rows=abi.ROW_CODES[b.rows],
                group=b.group_size,
                is_tile=i in fusion.tile_buffers,
                residual=b.residual,
            )
            for i, b in enumerate(program.buffers)
        ]
    )


def _encode_groups(program: StepProgram, kv: KvConfig) -> ctypes.Array[abi.CGroup]:
    return (abi.CGroup * len(program.kv_groups))(
        *[
            abi.CGroup(
                layers=g.num_layers,
                kv_heads=g.num_kv_heads,
                head_dim=g.head_dim,
                window=g.window,
                blocks=num_blocks,
            )
            for g, num_blocks in zip(program.kv_groups, kv.num_blocks, strict=True)
        ]
    )


def encode_program(
    program: StepProgram,
    weights: CpuWeights,
    limits: StepLimits,
    kv: KvConfig,
    fusion: Fusion,
) -> EncodedProgram:
    """Everything of hearth_model_desc but threads, instruction set and how attention is split."""
    encoder = _OpEncoder(program)
    ops = (abi.COp * len(program.ops))(*[encoder.encode(op) for op in program.ops])
    for group in fusion.groups:
        ops[group.first].fused = group.count - 1
    buffers = _encode_buffers(program, fusion)
    packed = (abi.CWeight * len(program.slots))(
        *[
            abi.CWeight(data=weights.address(slot), layout=abi.layout_of(slot))
            for slot in program.slots
        ]
    )
    groups = _encode_groups(program, kv)
    inv_freq = (ctypes.c_float * max(len(encoder.inv_freq), 1))(*encoder.inv_freq)
    desc = abi.CModelDesc(
        abi_version=abi.ABI_VERSION,
        num_ops=len(program.ops),
        num_buffers=len(program.buffers),
        num_weights=len(program.slots),
        num_groups=len(program.kv_groups),
        num_inv_freq=len(encoder.inv_freq),
        ops=ops,
        buffers=buffers,
        weights=packed,
        groups=groups,
        inv_freq=inv_freq,
        vocab_size=program.vocab_size,
        max_tokens=limits.max_tokens,
        max_sequences=limits.max_sequences,
        max_logit_rows=limits.max_logit_rows,
        max_model_len=limits.max_model_len,
        block_size=kv.block_size,
        max_image_rows=0,
        merge_rows=1,
    )
    return EncodedProgram(desc, [ops, buffers, packed, groups, inv_freq])
