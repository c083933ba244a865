"""Lowers a ModelSpec to a StepProgram: the only place that knows the order of operations.

A buffer is reused by all layers that need the same name and width. Layers with the same window
and head shape share a KV group; groups are numbered in the order of their first layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hearth.core.program import (
    Add,
    Angles,
    Attend,
    BufferRows,
    BufferSpec,
    Embed,
    Gate,
    KvGroupSpec,
    KvWrite,
    Linear,
    Norm,
    Op,
    Rope,
    Sample,
    Select,
    StepProgram,
)
from hearth.core.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec


@dataclass(frozen=True, slots=True)
class _KvPlace:
    """Where a layer's keys and values live."""

    group: int
    layer: int


@dataclass(slots=True)
class _Writer:
    """Collects operations and hands out buffers."""

    spec: ModelSpec
    ops: list[Op] = field(default_factory=list)
    buffers: list[BufferSpec] = field(default_factory=list)

    def buffer(self, name: str, width: int, rows: BufferRows = BufferRows.TOKENS) -> int:
        """The number of the buffer with these properties, made when first asked for."""
        wanted = BufferSpec(name, width, rows)
        if wanted not in self.buffers:
            self.buffers.append(wanted)
        return self.buffers.index(wanted)


def lower(spec: ModelSpec) -> StepProgram:
    """Writes the program of a model."""
    writer = _Writer(spec)
    hidden = writer.buffer("hidden", spec.hidden_size)
    angles = writer.buffer("angles", spec.rope.rotary_dim)
    writer.ops.append(Embed(spec.embedding, hidden, spec.embedding_scale))
    writer.ops.append(Angles(spec.rope, angles))
    groups = _kv_groups(spec)
    used = [0] * len(groups)
    for layer in spec.layers:
        group = _group_of(groups, layer.attention)
        place = _KvPlace(group, used[group])
        used[group] += 1
        _write_layer(writer, layer, place)
    _write_head(writer, hidden)
    return StepProgram(
        buffers=tuple(writer.buffers),
        ops=tuple(writer.ops),
        slots=spec.slots,
        kv_groups=groups,
        vocab_size=spec.vocab_size,
    )


def _group_of(groups: tuple[KvGroupSpec, ...], attention: AttentionSpec) -> int:
    shape = (attention.num_kv_heads, attention.head_dim, attention.window)
    return [(g.num_kv_heads, g.head_dim, g.window) for g in groups].index(shape)


def _kv_groups(spec: ModelSpec) -> tuple[KvGroupSpec, ...]:
    counts: dict[tuple[int, int, int], int] = {}
    for layer in spec.layers:
        key = (layer.attention.num_kv_heads, layer.attention.head_dim, layer.attention.window)
        counts[key] = counts.get(key, 0) + 1
    return tuple(KvGroupSpec(count, *key) for key, count in counts.items())


def _write_layer(writer: _Writer, layer: LayerSpec, place: _KvPlace) -> None:
    width = writer.spec.hidden_size
    hidden = writer.buffer("hidden", width)
    normed = writer.buffer("normed", width)
    branch = writer.buffer("branch", width)
    writer.ops.append(_norm(layer.attention_norm, hidden, normed))
    _write_attention(writer, layer.attention, place, (normed, branch))
    _write_residual(writer, layer.post_attention_norm)
    writer.ops.append(_norm(layer.mlp_norm, hidden, normed))
    _write_mlp(writer, layer.mlp, (normed, branch))
    _write_residual(writer, layer.post_mlp_norm)


def _write_attention(
    writer: _Writer, attention: AttentionSpec, place: _KvPlace, x_out: tuple[int, int]
) -> None:
    x, out = x_out
    heads, kv_heads, head_dim = attention.num_heads, attention.num_kv_heads, attention.head_dim
    rope = writer.spec.rope
    qkv = writer.buffer("qkv", (heads + 2 * kv_heads) * head_dim)
    mixed = writer.buffer("attention", heads * head_dim)
    angles = writer.buffer("angles", rope.rotary_dim)
    writer.ops += [
        Linear(x, attention.qkv, attention.qkv_bias, qkv),
        Rope(qkv, angles, heads + kv_heads, head_dim, rope),
        KvWrite(qkv, place.group, place.layer, heads, kv_heads, head_dim),
        Attend(
            qkv=qkv,
            out=mixed,
            group=place.group,
            layer=place.layer,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            scale=attention.scale,
            window=attention.window,
        ),
        Linear(mixed, attention.out, attention.out_bias, out),
    ]


def _write_mlp(writer: _Writer, mlp: MlpSpec, x_out: tuple[int, int]) -> None:
    x, out = x_out
    gate_up = writer.buffer("gate_up", 2 * mlp.intermediate_size)
    gated = writer.buffer("gated", mlp.intermediate_size)
    writer.ops += [
        Linear(x, mlp.gate_up, mlp.gate_up_bias, gate_up),
        Gate(gate_up, mlp.activation, gated),
        Linear(gated, mlp.down, mlp.down_bias, out),
    ]


def _write_residual(writer: _Writer, post_norm: NormSpec | None) -> None:
    """Adds `branch` to `hidden`, through the norm after the branch where there is one.

    The normed branch goes to `normed`, whose content is dead by then.
    """
    width = writer.spec.hidden_size
    branch = writer.buffer("branch", width)
    if post_norm is not None:
        normed = writer.buffer("normed", width)
        writer.ops.append(_norm(post_norm, branch, normed))
        branch = normed
    writer.ops.append(Add(writer.buffer("hidden", width), branch))


def _write_head(writer: _Writer, hidden: int) -> None:
    spec = writer.spec
    selected = writer.buffer("selected", spec.hidden_size, BufferRows.LOGITS)
    normed = writer.buffer("selected_normed", spec.hidden_size, BufferRows.LOGITS)
    logits = writer.buffer("logits", spec.vocab_size, BufferRows.LOGITS)
    writer.ops += [
        Select(hidden, selected),
        _norm(spec.final_norm, selected, normed),
        Linear(normed, spec.head, None, logits),
        Sample(logits),
    ]


def _norm(norm: NormSpec, x: int, out: int) -> Norm:
    return Norm(x, norm.weight, norm.eps, out)
