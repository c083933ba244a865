"""Lowers a VisionSpec to an EncoderProgram: the only place that knows an encoder's order.

A layer is two phases, since every patch attends to all of them: first keys and values of all, then
the rest. Only the residual stream and the angles are kept for a whole image; queries are computed
where they are needed.

  phase 0      patches, embedding, positions, angles; keys and values of layer 0
  phase i      attention and MLP of layer i - 1; phase i + 1 begins with its keys …
  last phase   attention and MLP of the last layer, joining, merger, output
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hearth.core.program import (
    Activate,
    Add,
    Angles,
    Attend,
    BufferRows,
    Emit,
    EncoderProgram,
    Gate,
    GridEmbed,
    KvGroupSpec,
    KvWrite,
    Patches,
    Regroup,
    Rope,
    StepProgram,
)
from hearth.core.spec import (
    Activation,
    LinearSpec,
    MlpSpec,
    ModelSpec,
    NormSpec,
    PlainMlpSpec,
    VisionAttentionSpec,
    VisionLayerSpec,
    VisionSpec,
)
from hearth.models.program_writer import ProgramWriter, norm_op


@dataclass(slots=True, kw_only=True)
class _Writer(ProgramWriter):
    """The program of an encoder, and where its phases begin."""

    spec: VisionSpec
    phases: list[int] = field(default_factory=lambda: [0])

    @property
    def hidden(self) -> int:
        """The residual stream, of the whole image."""
        return self.buffer("hidden", self.spec.hidden_size, BufferRows.IMAGE)

    @property
    def angles(self) -> int:
        """Angles of the rotation, of the whole image."""
        return self.buffer("angles", self.spec.rope.rotary_dim, BufferRows.IMAGE)

    def apply(self, part: LinearSpec, x: int, name: str) -> int:
        """A linear layer into a buffer of its own; returns it."""
        out = self.buffer(name, part.width, self.buffers[x].rows)
        self.ops += self.linear(x, part.weight, part.bias, out)
        return out

    def end_phase(self) -> None:
        """What follows needs all rows of what came before."""
        self.phases.append(len(self.ops))


def lower_vision(spec: ModelSpec) -> EncoderProgram | None:
    """Writes the program of a model's encoder; None: it has none."""
    vision = spec.vision
    if vision is None:
        return None
    writer = _Writer(spec=vision, quants={slot.name: slot.quant for slot in spec.slots})
    _write_embedding(writer)
    for layer in vision.layers:
        _write_keys(writer, layer)
        writer.end_phase()
        _write_layer(writer, layer)
        if layer is not vision.layers[-1]:
            writer.end_phase()
    output = _write_merger(writer)
    writer.end_phase()
    attention = vision.layers[0].attention
    program = StepProgram(
        buffers=tuple(writer.buffers),
        ops=tuple(writer.ops),
        slots=spec.slots,
        kv_groups=tuple(
            KvGroupSpec(1, attention.num_heads, attention.head_dim, window)
            for window in ((0, -1) if vision.window_tokens else (0,))
        ),
        vocab_size=1,
    )
    return EncoderProgram(
        program=program,
        phases=tuple(writer.phases),
        patch_values=vision.patch_values,
        merge_rows=vision.merge_size**2,
        output_size=output,
        window_tokens=vision.window_tokens,
    )


def _group(attention: VisionAttentionSpec) -> int:
    """Keys and values of layers with windows lie apart: how work is cut is a group's."""
    return int(attention.is_windowed)


def _write_embedding(writer: _Writer) -> None:
    spec, hidden = writer.spec, writer.hidden
    patches = writer.buffer("patches", spec.patch_values)
    writer.ops.append(Patches(patches))
    if spec.embed_norm is None:
        part = spec.patch_embed
        writer.ops += writer.linear(patches, part.weight, part.bias, hidden)
    else:
        embedded = writer.apply(spec.patch_embed, patches, "embedded")
        writer.ops.append(norm_op(spec.embed_norm, embedded, hidden))
    if spec.position_table is not None:
        writer.ops.append(GridEmbed(hidden, spec.position_table, spec.position_grid))
    writer.ops.append(Angles(spec.rope, writer.angles))


def _write_keys(writer: _Writer, layer: VisionLayerSpec) -> None:
    attention = layer.attention
    normed = _normed(writer, layer.attention_norm)
    keys = writer.apply(attention.kv, normed, "keys_values")
    heads, head_dim = attention.num_heads, attention.head_dim
    writer.ops += [
        Rope(keys, writer.angles, heads, head_dim, writer.spec.rope),
        KvWrite(keys, _group(attention), 0, num_heads=0, num_kv_heads=heads, head_dim=head_dim),
    ]


def _write_layer(writer: _Writer, layer: VisionLayerSpec) -> None:
    mixed = _write_attention(writer, layer.attention, _normed(writer, layer.attention_norm))
    writer.ops.append(Add(writer.hidden, writer.apply(layer.attention.out, mixed, "branch")))
    branch = _write_mlp(writer, layer.mlp, _normed(writer, layer.mlp_norm), "branch")
    writer.ops.append(Add(writer.hidden, branch))


def _write_attention(writer: _Writer, attention: VisionAttentionSpec, normed: int) -> int:
    queries = writer.apply(attention.q, normed, "queries")
    mixed = writer.buffer("mixed", attention.q.width)
    heads, head_dim = attention.num_heads, attention.head_dim
    writer.ops += [
        Rope(queries, writer.angles, heads, head_dim, writer.spec.rope),
        Attend(
            queries,
            mixed,
            group=_group(attention),
            layer=0,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=head_dim,
            scale=attention.scale,
            window=-1 if attention.is_windowed else 0,
            causal=False,
            rounded=writer.quants[attention.out.weight].int8_rows,
        ),
    ]
    return mixed


def _write_mlp(writer: _Writer, mlp: MlpSpec | PlainMlpSpec, x: int, name: str) -> int:
    """Returns the buffer of the MLP's output."""
    if isinstance(mlp, PlainMlpSpec):
        inner = writer.apply(mlp.up, x, "inner")
        writer.ops.append(Activate(inner, mlp.activation))
        return writer.apply(mlp.down, inner, name)
    size, rows = mlp.intermediate_size, writer.buffers[x].rows
    both = writer.apply(LinearSpec(2 * size, mlp.gate_up, mlp.gate_up_bias), x, "gate_up")
    gated = writer.buffer("gated", size, rows)
    writer.ops.append(Gate(both, mlp.activation, gated))
    out = writer.buffer(name, _mlp_width(writer, x), rows)
    writer.ops += writer.linear(gated, mlp.down, mlp.down_bias, out)
    return out


def _mlp_width(writer: _Writer, x: int) -> int:
    """An MLP's output is as wide as its input."""
    return writer.buffers[x].width


def _normed(writer: _Writer, norm: NormSpec) -> int:
    normed = writer.buffer("normed", writer.spec.hidden_size)
    writer.ops.append(norm_op(norm, writer.hidden, normed))
    return normed


def _write_merger(writer: _Writer) -> int:
    """Joins patches and brings them into the text model's space; returns the width there."""
    spec = writer.spec
    rows = writer.hidden if spec.final_norm is None else _normed(writer, spec.final_norm)
    count = spec.merge_size**2
    x = writer.buffer("joined", count * spec.hidden_size, BufferRows.MERGED)
    writer.ops.append(Regroup(rows, x, count, interleaved=spec.interleaved))
    for number, part in enumerate(spec.merger):
        match part:
            case LinearSpec():
                x = writer.apply(part, x, f"merged{number}")
            case NormSpec():
                writer.ops.append(norm_op(part, x, x))
            case Activation():
                writer.ops.append(Activate(x, part))
            case MlpSpec():
                x = _write_mlp(writer, part, x, f"merged{number}")
    writer.ops.append(Emit(x))
    return writer.buffers[x].width
