"""The step program: a model lowered to a flat list of operations over numbered buffers.

`models/lower` writes it, `kernels/fuse` may rewrite it, an executor runs it once a step. A buffer
is a matrix of float32 rows: one row a token of the step (`BufferRows.TOKENS`), or one row a wanted
logits row (`BufferRows.LOGITS`). Operations read and write whole buffers; `x == out` means in
place and is allowed only where an operation says so. Weights are named by slot.

The digest tells programs apart.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from hearth.core.spec import Activation, RopeSpec, RouterSpec, WeightSlot

PROGRAM_VERSION = 1


class BufferRows(IntEnum):
    """What a row of a buffer stands for.

    An encoder's step computes some rows of an image: TOKENS are those of the step, IMAGE all of
    the image (they stay from step to step), MERGED the step's rows joined by `EncoderProgram`'s
    `merge_rows`.
    """

    TOKENS = 0
    LOGITS = 1
    IMAGE = 2
    MERGED = 3


@dataclass(frozen=True, slots=True)
class BufferSpec:
    """A numbered buffer of `width` float32 a row; `name` is for people.

    With a `group_size` its rows are int8 instead: `width` codes, and a scale and a sum of codes
    for each group (see kernels/packing). `residual`: the same once more, of what rounding left in
    groups whose codes are small but for a few.
    """

    name: str
    width: int
    rows: BufferRows = BufferRows.TOKENS
    group_size: int = 0
    residual: bool = False


@dataclass(frozen=True, slots=True)
class KvGroupSpec:
    """Layers that share block tables: all with the same window (0: full attention).

    −1, of an encoder: a patch sees those of its own window of the image.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    window: int = 0


@dataclass(frozen=True, slots=True)
class Embed:
    """out[t] = scale · table[tokens[t]]; negative tokens refer to results of the step before.

    Rows that the plan names as encoder rows take an encoder's output instead, unscaled.
    """

    table: str
    out: int
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Angles:
    """out[t] = cosines then sines, [rotary_dim / 2] each, of positions[section, t] · inv_freq.

    The product is rounded to float32 before the cosine is taken, as transformers does.
    """

    rope: RopeSpec
    out: int


@dataclass(frozen=True, slots=True)
class Norm:
    """out[t] = x[t] / sqrt(mean(x[t]²) + eps) · weight (+ bias).

    `centered`: x[t] less its mean (layer norm). May work in place.
    """

    x: int
    weight: str
    eps: float
    out: int
    bias: str | None = None
    centered: bool = False


@dataclass(frozen=True, slots=True)
class Linear:
    """out[t] = weight · x[t] (+ bias); `x` may hold int8 rows where the weight is quantized."""

    x: int
    weight: str
    bias: str | None
    out: int


@dataclass(frozen=True, slots=True)
class Quantize:
    """out[t] = int8 codes of x[t]: round(x / scale), scale = largest magnitude of a group / 127."""

    x: int
    out: int


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """RMS norm, in place, of each query head by `q_weight` and each key head by `k_weight`.

    `x` holds q, k, v rows; weights are [head_dim], the mean is over the head's elements.
    """

    x: int
    q_weight: str
    k_weight: str
    eps: float
    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotates, in place, the first `num_heads` heads of each row of `x` by the rows of `angles`.

    For a q, k, v row `num_heads` counts query and key heads together.
    """

    x: int
    angles: int
    num_heads: int
    head_dim: int
    rope: RopeSpec


@dataclass(frozen=True, slots=True)
class KvWrite:
    """Stores the k and v parts of each q, k, v row at its slot of (group, layer)."""

    qkv: int
    group: int
    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Attend:
    """Causal attention of the q part of `qkv` over the blocks of (group, layer).

    Keys and values are read as stored, those of this step included (KvWrite comes before).
    With a `soft_cap` c > 0 a scaled score s becomes c · tanh(s / c). Not `causal`: each row sees
    all rows of its image, whose keys earlier steps have stored. `rounded`: where keys and values
    are stored as bfloat16, queries and softmax weights are rounded to it as well; the weights are
    those relative to a power of two (2^(s · log₂ e − m) with an integer m), before they are
    divided by their sum, which is that of the rounded ones. Sums stay float32. Where keys and
    values are e4m3 codes, a weight is multiplied by the scale of its value before it is rounded,
    and the sum is that of the weights alone, unrounded. Where they are integer codes, queries and
    weights have 15 bits of fixed point instead, to within 2^−15 of the largest element of the
    query, or of the largest product of weight and scale among 64 keys.
    """

    qkv: int
    out: int
    group: int
    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int = 0
    soft_cap: float = 0.0
    causal: bool = True
    rounded: bool = False


@dataclass(frozen=True, slots=True)
class Gate:
    """out[t] = act(x[t][:width]) · x[t][width:2·width], width = that of `out`."""

    x: int
    activation: Activation
    out: int


@dataclass(frozen=True, slots=True)
class Experts:
    """out[t] = Σ of weight · down · (act(gate · x[t]) · (up · x[t])) over row t's experts.

    The sum is taken by ascending index of the expert. What stands between the steps of the
    operation lies in buffers: routes[t] takes the router's choice from logits[t], `top_k` indices
    ascending and then their weights; gated[t] takes the weighted inputs of `down`, `top_k` times
    `intermediate_size`, in the same order. The slots are those of `MoeSpec`.

    Where `x` holds int8 rows, gated_codes[t] takes gated[t] as `top_k` int8 rows behind each other,
    in the layout of kernels/packing; they are what `down` reads.
    """

    x: int
    logits: int
    routes: int
    gated: int
    out: int
    router: RouterSpec
    gate_up: str
    down: str
    intermediate_size: int
    activation: Activation
    gated_codes: int | None = None


@dataclass(frozen=True, slots=True)
class Add:
    """x[t] += y[t], in place."""

    x: int
    y: int


@dataclass(frozen=True, slots=True)
class Select:
    """out[r] = x[logit_rows[r]]."""

    x: int
    out: int


@dataclass(frozen=True, slots=True)
class SoftCap:
    """x[r] = cap · tanh(x[r] / cap), in place."""

    x: int
    cap: float


@dataclass(frozen=True, slots=True)
class Sample:
    """Picks one token a logits row by the plan's sampling arrays; fills the StepResult."""

    logits: int


@dataclass(frozen=True, slots=True)
class Activate:
    """x[t] = act(x[t]), in place."""

    x: int
    activation: Activation


@dataclass(frozen=True, slots=True)
class Patches:
    """out[t] = the step's patch t."""

    out: int


@dataclass(frozen=True, slots=True)
class GridEmbed:
    """x[t] += the row of `table`, a grid of `size` · `size` rows, at the place of patch t.

    The grid is stretched over the image: bicubic (A = −0.75), align_corners off, borders repeated,
    as `grid_sample` of torch has it.
    """

    x: int
    table: str
    size: int


@dataclass(frozen=True, slots=True)
class Regroup:
    """out[r] = `count` rows of x from count · r on: behind each other, or value by value.

    `interleaved`: out[r][count · k + j] = x[count · r + j][k].
    """

    x: int
    out: int
    count: int
    interleaved: bool


@dataclass(frozen=True, slots=True)
class Emit:
    """The rows of x are the encoder's output."""

    x: int


Op: TypeAlias = (
    Embed
    | Angles
    | Norm
    | Linear
    | Quantize
    | HeadNorm
    | Rope
    | KvWrite
    | Attend
    | Gate
    | Experts
    | Add
    | Select
    | SoftCap
    | Sample
    | Activate
    | Patches
    | GridEmbed
    | Regroup
    | Emit
)


@dataclass(frozen=True, slots=True)
class StepProgram:
    """What an executor runs: buffers, operations in order, weights, KV groups."""

    buffers: tuple[BufferSpec, ...]
    ops: tuple[Op, ...]
    slots: tuple[WeightSlot, ...]
    kv_groups: tuple[KvGroupSpec, ...]
    vocab_size: int
    version: int = PROGRAM_VERSION

    def slot(self, name: str) -> WeightSlot:
        """The weight slot of a name that the program has."""
        return next(slot for slot in self.slots if slot.name == name)

    def digest(self) -> str:
        """Hex SHA-256 over version, buffers, operations, slots and groups."""
        text = repr((self.version, self.buffers, self.ops, self.slots, self.kv_groups))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class EncoderProgram:
    """A vision encoder's program: its rows go through one phase after the other.

    A phase is operations `phases[i]` … `phases[i + 1]` − 1. Within it the rows of an image may be
    taken some at a time, in order (multiples of `merge_rows`); the next one begins when all are
    through. `program` has a KV group for the layer at hand; where some layers attend within windows
    of `window_tokens`² tokens, two, and patches of a window follow each other.
    """

    program: StepProgram
    phases: tuple[int, ...]
    patch_values: int
    merge_rows: int
    output_size: int
    window_tokens: int = 0
