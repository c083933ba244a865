"""Interprets a step program on dense torch tensors: plain, float32, differentiable.

Every operation is a few lines that say what `core.program` says. Nothing is written in place, so
that gradients flow from the logits to the weights (through `PassKv`).
"""

from __future__ import annotations

from collections.abc import Callable
from math import e, log2
from typing import Any, Protocol

import torch
from torch.nn import functional

from hearth.core.program import (
    Activate,
    Add,
    Angles,
    Attend,
    BufferRows,
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
from hearth.core.spec import Activation, KvDType, RopePairing, RopeSpec
from hearth.kernels.packing import KV_SCALE_COLUMNS
from hearth.kernels.reference.experts import ExpertWeights, mix, route
from hearth.kernels.reference.grid import sample_grid
from hearth.kernels.reference.kv import KvPlace, KvStore, StepTensors
from hearth.kernels.reference.kv_codes import Coded, rotate
from hearth.kernels.reference.quantize import rounded_rows


class WeightLookup(Protocol):
    """Weights by slot name: float32, [rows, cols] or [rows]."""

    def __getitem__(self, name: str) -> torch.Tensor: ...


def forward(
    program: StepProgram, weights: WeightLookup, step: StepTensors, kv: KvStore
) -> torch.Tensor:
    """Runs a program up to its sampling, or an encoder's up to its output.

    Returns the raw logits, [R, vocabulary], or the encoder's rows, [tokens, hidden].
    """
    run = _Pass(program, weights, step, kv)
    for op in program.ops:
        if isinstance(op, Sample):
            return run.buffers[op.logits]
        if isinstance(op, Emit):
            return run.buffers[op.x]
        _HANDLERS[type(op)](run, op)
    raise AssertionError("a program ends with Sample or Emit")


class _Pass:
    """One run of a program: its buffers by number."""

    def __init__(
        self, program: StepProgram, weights: WeightLookup, step: StepTensors, kv: KvStore
    ) -> None:
        self.program = program
        self.weights = weights
        self.step = step
        self.kv = kv
        self.buffers: dict[int, torch.Tensor] = {}

    def embed(self, op: Embed) -> None:
        rows = self.weights[op.table][self.step.tokens] * op.scale
        if self.step.feature_rows is not None and self.step.features is not None:
            rows = rows.index_copy(0, self.step.feature_rows, self.step.features)
        self.buffers[op.out] = rows

    def angles(self, op: Angles) -> None:
        self.buffers[op.out] = _angles(op.rope, self.step.positions)

    def norm(self, op: Norm) -> None:
        x = self.buffers[op.x]
        if op.centered:
            x = x - x.mean(-1, keepdim=True)
        normed = _rms_norm(x, self.weights[op.weight], op.eps)
        self.buffers[op.out] = normed if op.bias is None else normed + self.weights[op.bias]

    def linear(self, op: Linear) -> None:
        bias = self.weights[op.bias] if op.bias is not None else None
        self.buffers[op.out] = functional.linear(self.buffers[op.x], self.weights[op.weight], bias)

    def quantize(self, op: Quantize) -> None:
        out = self.program.buffers[op.out]
        rows = rounded_rows(self.buffers[op.x], out.group_size, residual=out.residual)
        self.buffers[op.out] = rows

    def head_norm(self, op: HeadNorm) -> None:
        x = self.buffers[op.x]
        heads = x.reshape(x.shape[0], -1, op.head_dim)
        first_value = op.num_heads + op.num_kv_heads
        parts = (
            _rms_norm(heads[:, : op.num_heads], self.weights[op.q_weight], op.eps),
            _rms_norm(heads[:, op.num_heads : first_value], self.weights[op.k_weight], op.eps),
            heads[:, first_value:],
        )
        self.buffers[op.x] = torch.cat(parts, dim=1).flatten(-2)

    def rope(self, op: Rope) -> None:
        x = self.buffers[op.x]
        width = op.num_heads * op.head_dim
        heads = x[:, :width].reshape(-1, op.num_heads, op.head_dim)
        rotated = _rotate(heads, self.buffers[op.angles], op.rope)
        self.buffers[op.x] = torch.cat((rotated.reshape(-1, width), x[:, width:]), dim=-1)

    def kv_write(self, op: KvWrite) -> None:
        qkv = self.buffers[op.qkv]
        q_width, kv_width = op.num_heads * op.head_dim, op.num_kv_heads * op.head_dim
        keys = qkv[:, q_width : q_width + kv_width].reshape(-1, op.num_kv_heads, op.head_dim)
        values = qkv[:, q_width + kv_width :].reshape(-1, op.num_kv_heads, op.head_dim)
        self.kv.write(self.step, KvPlace(op.group, op.layer), keys, values)

    def attend(self, op: Attend) -> None:
        width = op.num_heads * op.head_dim  # k and v, if they are there, stand behind
        queries = self.buffers[op.qkv][:, :width].reshape(-1, op.num_heads, op.head_dim)
        wanted = self.program.buffers[op.out].rows is BufferRows.LOGITS
        if wanted:  # the others' stay zero, and are left out again
            own, rows = queries, self.step.logit_rows
            queries = own.new_zeros(len(self.step.tokens), *own.shape[1:]).index_put((rows,), own)
        mixed = [_attend(self, op, queries, index) for index in range(len(self.step.sequences))]
        whole = torch.cat(mixed).reshape(-1, width)
        self.buffers[op.out] = whole[self.step.logit_rows] if wanted else whole

    def gate(self, op: Gate) -> None:
        gate, up = self.buffers[op.x].chunk(2, dim=-1)
        self.buffers[op.out] = _ACTIVATIONS[op.activation](gate) * up

    def experts(self, op: Experts) -> None:
        bias = self.weights[op.router.bias] if op.router.bias is not None else None
        routes = route(self.buffers[op.logits], op.router, bias)
        count = op.router.num_experts
        weights = ExpertWeights(
            _per_expert(self.weights[op.gate_up], count),
            _per_expert(self.weights[op.down], count),
        )
        rounded = None
        if op.gated_codes is not None:
            group_size = self.program.slot(op.down).quant.group_size

            residual = self.program.buffers[op.x].residual

            def rounded(x: torch.Tensor) -> torch.Tensor:
                return rounded_rows(x, group_size, residual=residual)

        activate = _ACTIVATIONS[op.activation]
        self.buffers[op.out] = mix(self.buffers[op.x], routes, weights, activate, rounded)

    def add(self, op: Add) -> None:
        self.buffers[op.x] = self.buffers[op.x] + self.buffers[op.y]

    def select(self, op: Select) -> None:
        self.buffers[op.out] = self.buffers[op.x][self.step.logit_rows]

    def soft_cap(self, op: SoftCap) -> None:
        self.buffers[op.x] = _soft_cap(self.buffers[op.x], op.cap)

    def activate(self, op: Activate) -> None:
        self.buffers[op.x] = _ACTIVATIONS[op.activation](self.buffers[op.x])

    def patches(self, op: Patches) -> None:
        assert self.step.patches is not None, "an encoder's pass has patches"
        self.buffers[op.out] = self.step.patches

    def grid_embed(self, op: GridEmbed) -> None:
        places, table = self.step.positions[1:], self.weights[op.table]
        rows = sample_grid(table, op.size, places, self.step.grid)
        self.buffers[op.x] = self.buffers[op.x] + rows

    def regroup(self, op: Regroup) -> None:
        x = self.buffers[op.x]
        joined = x.reshape(-1, op.count, x.shape[-1])
        if op.interleaved:
            joined = joined.transpose(1, 2)
        self.buffers[op.out] = joined.flatten(1)


# The table is keyed by the operation's own type, which the value type cannot express.
_HANDLERS: dict[type[Op], Callable[[_Pass, Any], None]] = {
    Embed: _Pass.embed,
    Angles: _Pass.angles,
    Norm: _Pass.norm,
    Linear: _Pass.linear,
    Quantize: _Pass.quantize,
    HeadNorm: _Pass.head_norm,
    Rope: _Pass.rope,
    KvWrite: _Pass.kv_write,
    Attend: _Pass.attend,
    Gate: _Pass.gate,
    Experts: _Pass.experts,
    Add: _Pass.add,
    Select: _Pass.select,
    SoftCap: _Pass.soft_cap,
    Activate: _Pass.activate,
    Patches: _Pass.patches,
    GridEmbed: _Pass.grid_embed,
    Regroup: _Pass.regroup,
}

_ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    Activation.SILU: functional.silu,
    Activation.GELU_TANH: lambda x: functional.gelu(x, approximate="tanh"),
    Activation.GELU: functional.gelu,
    Activation.QUICK_GELU: lambda x: x * torch.sigmoid(1.702 * x),
}


def _per_expert(stacked: torch.Tensor, num_experts: int) -> torch.Tensor:
    """[experts, rows, cols] of [experts · rows, cols]."""
    return stacked.reshape(num_experts, -1, stacked.shape[-1])


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def _soft_cap(x: torch.Tensor, cap: float) -> torch.Tensor:
    return torch.tanh(x / cap) * cap


def _angles(rope: RopeSpec, positions: torch.Tensor) -> torch.Tensor:
    """Cosines then sines, [T, rotary_dim]; frequencies follow the position row of their section."""
    inv_freq = torch.tensor(rope.inv_freq, dtype=torch.float32)
    section = torch.zeros(len(rope.inv_freq), dtype=torch.long)
    if rope.sections:
        section = torch.repeat_interleave(torch.tensor(rope.sections))
    angle = positions.float()[section].T * inv_freq
    return torch.cat((angle.cos(), angle.sin()), dim=-1) * rope.attention_scaling


def _rotate(heads: torch.Tensor, angles: torch.Tensor, rope: RopeSpec) -> torch.Tensor:
    """Rotates the first `rotary_dim` elements of [T, heads, head_dim] by [T, rotary_dim]."""
    half = rope.rotary_dim // 2
    cosine, sine = angles[:, None, :half], angles[:, None, half:]
    rotary, rest = heads[..., : rope.rotary_dim], heads[..., rope.rotary_dim :]
    if rope.pairing is RopePairing.HALF:
        first, second = rotary[..., :half], rotary[..., half:]
    else:
        first, second = rotary[..., 0::2], rotary[..., 1::2]
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    if rope.pairing is RopePairing.HALF:
        return torch.cat((*turned, rest), dim=-1)
    return torch.cat((torch.stack(turned, dim=-1).flatten(-2), rest), dim=-1)


def _attend(run: _Pass, op: Attend, queries: torch.Tensor, index: int) -> torch.Tensor:
    """Causal attention of one sequence's rows, [n, num_heads, head_dim]."""
    rows = run.step.sequences[index]
    stored = run.kv.read(run.step, KvPlace(op.group, op.layer), index)
    repeats = op.num_heads // op.num_kv_heads
    keys = stored.keys.repeat_interleave(repeats, dim=1)
    values = stored.values.repeat_interleave(repeats, dim=1)
    own = queries[rows.first_row : rows.last_row]
    if run.kv.rotates_keys:
        own = rotate(own)
    # With integer codes the kernels have 15 bits of fixed point, which is not modelled here.
    rounded = op.rounded and run.kv.dtype not in (KvDType.FLOAT32, KvDType.INT8, KvDType.INT4)
    if rounded:
        own = own.bfloat16().float()
    scores = torch.einsum("nhd,lhd->hnl", own, keys) * op.scale
    if op.soft_cap:
        scores = _soft_cap(scores, op.soft_cap)
    if not op.causal:
        if op.window:
            assert run.step.windows is not None, "an image has its windows"
            other = run.step.windows[:, None] != run.step.windows[None, :]
            scores = scores.masked_fill(other, float("-inf"))
        return torch.einsum("hnl,lhd->nhd", _softmax(scores, rounded=rounded), values)
    row = rows.context + torch.arange(own.shape[0])[:, None]
    key = stored.first_index + torch.arange(keys.shape[0])[None, :]
    hidden = key > row
    if op.window:
        hidden |= key <= row - op.window
    scores = scores.masked_fill(hidden, float("-inf"))
    if rounded and stored.coded is not None:
        return _mix_codes(scores, stored.coded, repeats)
    return torch.einsum("hnl,lhd->nhd", _softmax(scores, rounded=rounded), values)


def _mix_codes(scores: torch.Tensor, coded: Coded, repeats: int) -> torch.Tensor:
    """Values as codes, weighted: a weight is rounded when it has been multiplied by the scale."""
    codes = coded.codes.repeat_interleave(repeats, dim=1)
    scales = coded.scales.repeat_interleave(repeats, dim=1)
    weights = _powers(scores)
    width = codes.shape[-1]
    size = width if scales.shape[-1] == 1 else KV_SCALE_COLUMNS
    parts = []
    for group, first in enumerate(range(0, width, size)):
        scaled = (weights * scales[..., group].T[:, None]).bfloat16().float()
        parts.append(torch.einsum("hnl,lhd->nhd", scaled, codes[..., first : first + size]))
    return torch.cat(parts, dim=-1) / weights.sum(-1).T[..., None]


def _powers(scores: torch.Tensor) -> torch.Tensor:
    """Weights relative to a power of two near the largest."""
    powers = scores * log2(e)
    return (powers - powers.amax(dim=-1, keepdim=True).round()).exp2()


def _softmax(scores: torch.Tensor, *, rounded: bool) -> torch.Tensor:
    """Weights of the keys, [heads, rows, keys]; see `Attend.rounded`."""
    if not rounded:
        return scores.softmax(dim=-1)
    weights = _powers(scores).bfloat16().float()
    return weights / weights.sum(dim=-1, keepdim=True)
