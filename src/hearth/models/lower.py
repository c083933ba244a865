"""Lowers a ModelSpec to a StepProgram: the only place that knows the order of operations.

A buffer is reused by all layers that need the same name and width. Layers with the same window
and head shape share a KV group; groups are numbered in the order of their first layer.

What follows the last layer's keys and values is computed for the rows whose logits are wanted, and
for no others: of a prompt that is one row, or none before its last chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

from hearth.core.program import (
    Add,
    Angles,
    Attend,
    BufferRows,
    Embed,
    Experts,
    Gate,
    HeadNorm,
    KvGroupSpec,
    KvWrite,
    Linear,
    Op,
    Rope,
    Sample,
    SoftCap,
    StepProgram,
)
from hearth.core.spec import (
    AttentionSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    MoeSpec,
    NormSpec,
    RopeSpec,
)
from hearth.kernels.packing import row_bytes
from hearth.models.program_writer import ProgramWriter, norm_op


@dataclass(frozen=True, slots=True)
class _KvPlace:
    """Where a layer's keys and values live."""

    group: int
    layer: int


@dataclass(slots=True, kw_only=True)
class _Writer(ProgramWriter):
    """The program of a decoder."""

    spec: ModelSpec
    ropes: list[RopeSpec]  # that layers use, in the order of their first layer

    def angles(self, rope: RopeSpec) -> int:
        """The buffer that holds the angles of a rotation."""
        number = self.ropes.index(rope)
        return self.buffer(f"angles{number or ''}", rope.rotary_dim)


def lower(spec: ModelSpec) -> StepProgram:
    """Writes the program of a model."""
    ropes = dict.fromkeys(layer.attention.rope or spec.rope for layer in spec.layers)
    quants = {slot.name: slot.quant for slot in spec.slots}
    writer = _Writer(spec=spec, ropes=list(ropes), quants=quants)
    hidden = writer.buffer("hidden", spec.hidden_size)
    writer.ops.append(Embed(spec.embedding, hidden, spec.embedding_scale))
    writer.ops += [Angles(rope, writer.angles(rope)) for rope in ropes]
    groups = _kv_groups(spec)
    used = [0] * len(groups)
    for number, layer in enumerate(spec.layers, 1):
        group = _group_of(groups, layer.attention)
        place = _KvPlace(group, used[group])
        used[group] += 1
        _write_layer(writer, layer, place, is_last=number == len(spec.layers))
    _write_head(writer)
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


def _write_layer(writer: _Writer, layer: LayerSpec, place: _KvPlace, *, is_last: bool) -> None:
    width = writer.spec.hidden_size
    normed = writer.buffer("normed", width)
    writer.ops.append(norm_op(layer.attention_norm, writer.buffer("hidden", width), normed))
    _write_attention(writer, layer.attention, place, normed, is_last=is_last)
    _write_residual(writer, layer.post_attention_norm)
    hidden, normed, branch = (writer.buffer(name, width) for name in ("hidden", "normed", "branch"))
    writer.ops.append(norm_op(layer.mlp_norm, hidden, normed))
    if isinstance(layer.mlp, MoeSpec):
        _write_experts(writer, layer.mlp, (normed, branch))
    else:
        _write_mlp(writer, layer.mlp, (normed, branch))
    _write_residual(writer, layer.post_mlp_norm)


def _write_attention(
    writer: _Writer, attention: AttentionSpec, place: _KvPlace, x: int, *, is_last: bool
) -> None:
    """To `branch`. In the last layer, the rest of the program has fewer rows than the keys."""
    heads, kv_heads, head_dim = attention.num_heads, attention.num_kv_heads, attention.head_dim
    rope = attention.rope or writer.spec.rope
    qkv = writer.buffer("qkv", (heads + 2 * kv_heads) * head_dim)
    writer.ops += [
        *writer.linear(x, attention.qkv, attention.qkv_bias, qkv),
        *_head_norms(attention, qkv),
        Rope(qkv, writer.angles(rope), heads + kv_heads, head_dim, rope),
        KvWrite(qkv, place.group, place.layer, heads, kv_heads, head_dim),
    ]
    if is_last:
        writer.selected(writer.buffer("hidden", writer.spec.hidden_size))
        qkv = writer.selected(qkv)
        writer.rows = BufferRows.LOGITS
    mixed = writer.buffer("attention", heads * head_dim)
    writer.ops += [
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
            soft_cap=attention.soft_cap,
            rounded=writer.quants[attention.out].int8_rows,
        ),
        *writer.linear(
            mixed,
            attention.out,
            attention.out_bias,
            writer.buffer("branch", writer.spec.hidden_size),
        ),
    ]


def _head_norms(attention: AttentionSpec, qkv: int) -> list[Op]:
    q_norm, k_norm = attention.q_norm, attention.k_norm
    if q_norm is None or k_norm is None:
        return []
    heads = (attention.num_heads, attention.num_kv_heads, attention.head_dim)
    return [HeadNorm(qkv, q_norm.weight, k_norm.weight, q_norm.eps, *heads)]


def _write_mlp(writer: _Writer, mlp: MlpSpec, x_out: tuple[int, int]) -> None:
    x, out = x_out
    gate_up = writer.buffer("gate_up", 2 * mlp.intermediate_size)
    gated = writer.buffer("gated", mlp.intermediate_size)
    writer.ops += [
        *writer.linear(x, mlp.gate_up, mlp.gate_up_bias, gate_up),
        Gate(gate_up, mlp.activation, gated),
        *writer.linear(gated, mlp.down, mlp.down_bias, out),
    ]


def _write_experts(writer: _Writer, moe: MoeSpec, x_out: tuple[int, int]) -> None:
    x, out = x_out
    router = moe.router
    logits = writer.buffer("router_logits", router.num_experts)
    writer.ops.append(Linear(x, moe.router_weight, None, logits))
    rows, codes = x, None
    if writer.quants[moe.gate_up].int8_rows:
        rounding = writer.rounding(x, moe.gate_up)
        writer.ops.append(rounding)
        part_bytes = row_bytes(
            moe.intermediate_size,
            writer.quants[moe.down].group_size,
            residual=writer.quants[moe.gate_up].residual_rows,
        )
        rows, codes = rounding.out, writer.buffer("expert_codes", router.top_k * part_bytes // 4)
    writer.ops.append(
        Experts(
            x=rows,
            logits=logits,
            routes=writer.buffer("routes", 2 * router.top_k),
            gated=writer.buffer("expert_gated", router.top_k * moe.intermediate_size),
            out=out,
            router=router,
            gate_up=moe.gate_up,
            down=moe.down,
            intermediate_size=moe.intermediate_size,
            activation=moe.activation,
            gated_codes=codes,
        )
    )
    if moe.shared is not None:
        shared = writer.buffer("shared_expert", writer.spec.hidden_size)
        _write_mlp(writer, moe.shared, (x, shared))
        writer.ops.append(Add(out, shared))


def _write_residual(writer: _Writer, post_norm: NormSpec | None) -> None:
    """Adds `branch` to `hidden`, through the norm after the branch where there is one.

    The normed branch goes to `normed`, whose content is dead by then.
    """
    width = writer.spec.hidden_size
    branch = writer.buffer("branch", width)
    if post_norm is not None:
        normed = writer.buffer("normed", width)
        writer.ops.append(norm_op(post_norm, branch, normed))
        branch = normed
    writer.ops.append(Add(writer.buffer("hidden", width), branch))


def _write_head(writer: _Writer) -> None:
    spec = writer.spec
    hidden, normed = (writer.buffer(name, spec.hidden_size) for name in ("hidden", "normed"))
    logits = writer.buffer("logits", spec.vocab_size)
    writer.ops += [
        norm_op(spec.final_norm, hidden, normed),
        *writer.linear(normed, spec.head, None, logits),
    ]
    if spec.logit_soft_cap:
        writer.ops.append(SoftCap(logits, spec.logit_soft_cap))
    writer.ops.append(Sample(logits))
