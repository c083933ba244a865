"""Small programs that hold one kind of operation many times, for `benchmarks/kernel.py`.

A `Bed` is a program in two forms: the prologue alone, and the prologue followed by copies of the
measured operation, each with weights or a KV layer of its own, so that no cache holds the next
one's. The difference between the two, divided by the copies, is the cost of one. Both run through
`CpuExecutor.execute`, as a served model does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.ceilings import Ops

from hearth.core.program import (
    Add,
    Angles,
    Attend,
    BufferSpec,
    Embed,
    Gate,
    KvGroupSpec,
    KvWrite,
    Linear,
    Norm,
    Op,
    Quantize,
    Rope,
    StepProgram,
)
from hearth.core.spec import Activation, DType, QuantSpec, RopePairing, RopeSpec, SlotKind
from hearth.core.spec import WeightSlot as Slot
from hearth.core.units import round_up
from hearth.engine.synthetic import NUM_TOKENS, Segment
from hearth.kernels.packing import packed_bytes

TABLE_ROWS = NUM_TOKENS
ROTATED_BYTES = 256 << 20  # weights of all copies together: more than any cache here
COPIES_OF_ROW_OPS = 64
GROUP_SIZE = 128
BLOCK_SIZE = 32


@dataclass(frozen=True)
class Shape:
    """The widths of a model."""

    name: str
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    rope: RopeSpec

    @property
    def qkv(self) -> int:
        """Width of a row of queries, keys and values."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    def linears(self) -> dict[str, tuple[int, int]]:
        """(columns, rows) of each matrix."""
        return {
            "qkv": (self.hidden, self.qkv),
            "o": (self.heads * self.head_dim, self.hidden),
            "gate_up": (self.hidden, 2 * self.intermediate),
            "down": (self.intermediate, self.hidden),
            "head": (self.hidden, self.vocabulary),
        }


def _rope(dim: int, pairing: RopePairing, sections: tuple[int, ...] = ()) -> RopeSpec:
    inverse = tuple(10000.0 ** (-2 * i / dim) for i in range(dim // 2))
    return RopeSpec(dim, pairing, inverse, sections)


SHAPES = {
    "1.5b": Shape("1.5b", 2048, 8192, 16, 4, 128, 32768, _rope(128, RopePairing.HALF)),
    # The text model of AutoGLM-Phone-9B.
    "9b": Shape(
        "9b", 4096, 13696, 32, 2, 128, 151552, _rope(64, RopePairing.INTERLEAVED, (8, 12, 12))
    ),
}


@dataclass(frozen=True)
class Point:
    """One measured step and what it cannot do without, for one copy of the operation."""

    rows: int
    segments: tuple[Segment, ...]
    num_bytes: float  # read and written, weights or KV above all
    ops: Ops = field(default_factory=Ops)
    label: str = ""


@dataclass(frozen=True)
class Bed:
    """Prologue and copies of one operation; see the module's docstring."""

    kind: str
    name: str
    buffers: tuple[BufferSpec, ...]
    slots: tuple[Slot, ...]
    prologue: tuple[Op, ...]
    copies: tuple[Op, ...]
    points: tuple[Point, ...]
    kv_groups: tuple[KvGroupSpec, ...] = ()
    warm_kv_tokens: int = 0  # so many tokens of KV are written before anything is measured

    def program(self, with_copies: bool) -> StepProgram:
        """The program of one of the two forms; slots that it does not use are left out."""
        ops = self.prologue + (self.copies if with_copies else ())
        used = {op.weight for op in ops if isinstance(op, Linear | Norm)}
        slots = tuple(s for s in self.slots if s.kind is SlotKind.TABLE or s.name in used)
        return StepProgram(self.buffers, ops, slots, self.kv_groups, TABLE_ROWS)


QUANTS = {
    "int4": QuantSpec(DType.BFLOAT16, 4, GROUP_SIZE, int8_rows=True),
    "int8": QuantSpec(DType.BFLOAT16, 8, GROUP_SIZE, int8_rows=True),
    "bf16": QuantSpec(DType.BFLOAT16),
    "fp32": QuantSpec(DType.FLOAT32),
}


def linear_beds(
    shape: Shape, scheme: str, rows: Sequence[int], rotated_bytes: int = ROTATED_BYTES
) -> Iterator[Bed]:
    """Every matrix of the model in one scheme; the head of int4 is int8, as in serving."""
    for name, (cols, outputs) in shape.linears().items():
        quant = QUANTS["int8" if scheme == "int4" and name == "head" else scheme]
        one = Slot("w0", SlotKind.LINEAR, outputs, cols, (), quant)
        num_copies = max(2, -(-rotated_bytes // packed_bytes(one)))
        slots = [_table(cols)]
        slots += [
            Slot(f"w{i}", SlotKind.LINEAR, outputs, cols, (), quant) for i in range(num_copies)
        ]
        buffers = [BufferSpec("x", cols), BufferSpec("y", outputs)]
        prologue: list[Op] = [Embed("table", 0)]
        if quant.int8_rows:
            buffers.append(BufferSpec("codes", cols, group_size=quant.group_size))
            prologue.append(Quantize(0, 2))
        x = 2 if quant.int8_rows else 0
        copies = tuple(Linear(x, f"w{i}", None, 1) for i in range(num_copies))
        ops = 2.0 * cols * outputs
        points = tuple(
            Point(
                m,
                (Segment(0, m),),
                packed_bytes(one),
                Ops(int8=ops * m) if quant.int8_rows else Ops(fp32=ops * m),
            )
            for m in rows
        )
        title = f"{name} {cols}→{outputs} {'int8' if quant.bits == 8 else scheme}"
        yield Bed("linear", title, tuple(buffers), tuple(slots), tuple(prologue), copies, points)


def row_op_beds(shape: Shape, rows: Sequence[int]) -> Iterator[Bed]:
    """The operations on rows: bytes are those read and written, most of which caches hold."""
    hidden, inter, qkv = shape.hidden, shape.intermediate, shape.qkv
    norm = Slot("norm", SlotKind.VECTOR, hidden, 1, (), QuantSpec(DType.FLOAT32))
    wide = BufferSpec("x", hidden)
    yield _row_bed(
        f"norm {hidden}",
        (wide, BufferSpec("y", hidden)),
        Norm(0, "norm", 1e-5, 1),
        rows,
        8 * hidden,
        norm,
    )
    for width in (hidden, inter):
        codes = BufferSpec("codes", width, group_size=GROUP_SIZE)
        yield _row_bed(
            f"quantize {width}", (BufferSpec("x", width), codes), Quantize(0, 1), rows, 5 * width
        )
    gate = (BufferSpec("x", 2 * inter), BufferSpec("y", inter))
    yield _row_bed(f"gate {inter}", gate, Gate(0, Activation.SILU, 1), rows, 12 * inter)
    yield _row_bed(f"add {hidden}", (wide, BufferSpec("y", hidden)), Add(0, 1), rows, 12 * hidden)
    angles = BufferSpec("angles", shape.rope.rotary_dim)
    rope = Rope(0, 1, shape.heads + shape.kv_heads, shape.head_dim, shape.rope)
    yield _row_bed(
        f"rope {shape.heads}+{shape.kv_heads}×{shape.head_dim}",
        (BufferSpec("x", qkv), angles),
        rope,
        rows,
        8 * (shape.heads + shape.kv_heads) * shape.rope.rotary_dim,
        prologue=(Angles(shape.rope, 1),),
    )


def _row_bed(
    name: str,
    buffers: tuple[BufferSpec, ...],
    op: Op,
    rows: Sequence[int],
    bytes_a_row: float,
    weight: Slot | None = None,
    prologue: tuple[Op, ...] = (),
) -> Bed:
    points = tuple(Point(m, (Segment(0, m),), bytes_a_row * m) for m in rows)
    slots = (_table(buffers[0].width), *((weight,) if weight else ()))
    copies = (op,) * COPIES_OF_ROW_OPS
    return Bed("row", name, buffers, slots, (Embed("table", 0), *prologue), copies, points)


def attention_beds(
    shape: Shape, contexts: Sequence[int], chunk: int, rotated_bytes: int = ROTATED_BYTES
) -> Iterator[Bed]:
    """KV writes, decode of one and eight sequences, and a chunk of prefill at its end."""
    for context in contexts:
        bytes_a_token = 4 * shape.kv_heads * shape.head_dim
        layers = max(2, -(-rotated_bytes // (context * bytes_a_token)))
        decode = (_attend_point(shape, (Segment(context - 1, 1),), f"decode @{context}"),)
        yield _attention_bed(shape, layers, decode)
        eight = (_attend_point(shape, (Segment(context - 1, 1),) * 8, f"8 × decode @{context}"),)
        yield _attention_bed(shape, max(2, layers // 8), eight)
        whole = (
            _attend_point(shape, (Segment(context - chunk, chunk),), f"chunk {chunk} @{context}"),
        )
        yield _attention_bed(shape, 2, whole)
    heads = (shape.heads, shape.kv_heads, shape.head_dim)
    writes = tuple(KvWrite(0, 0, i, *heads) for i in range(COPIES_OF_ROW_OPS))
    group = KvGroupSpec(COPIES_OF_ROW_OPS, shape.kv_heads, shape.head_dim)
    points = tuple(
        Point(m, (Segment(0, m),), m * 2 * shape.kv_heads * shape.head_dim * (4 + 2))
        for m in (1, 32, 512)
    )
    yield Bed(
        "kv_write",
        f"kv write {shape.kv_heads}×{shape.head_dim} bf16",
        (BufferSpec("x", shape.qkv),),
        (_table(shape.qkv),),
        (Embed("table", 0),),
        writes,
        points,
        (group,),
        512,
    )


def _attend_point(shape: Shape, segments: tuple[Segment, ...], label: str) -> Point:
    """Bytes: K and V in bfloat16 once a sequence; two products of two operations an element."""
    keys = sum(s.rows * s.context + s.rows * (s.rows + 1) // 2 for s in segments)
    read = sum(s.context + s.rows for s in segments) * 4 * shape.kv_heads * shape.head_dim
    flops = 4.0 * shape.heads * shape.head_dim * keys
    return Point(sum(s.rows for s in segments), segments, read, Ops(pairs=flops), label)


def _attention_bed(shape: Shape, layers: int, points: tuple[Point, ...]) -> Bed:
    heads = (shape.heads, shape.kv_heads, shape.head_dim)
    scale = shape.head_dim**-0.5
    return Bed(
        "attend",
        f"attend {shape.heads}/{shape.kv_heads}×{shape.head_dim} bf16",
        (BufferSpec("x", shape.qkv), BufferSpec("y", shape.heads * shape.head_dim)),
        (_table(shape.qkv),),
        (Embed("table", 0), *(KvWrite(0, 0, i, *heads) for i in range(layers))),
        tuple(Attend(0, 1, 0, i, *heads, scale=scale, rounded=True) for i in range(layers)),
        points,
        (KvGroupSpec(layers, shape.kv_heads, shape.head_dim),),
        sum(round_up(s.context + s.rows, BLOCK_SIZE) for s in points[0].segments),
    )


def _table(width: int) -> Slot:
    return Slot("table", SlotKind.TABLE, TABLE_ROWS, width, (), QuantSpec(DType.FLOAT32))
