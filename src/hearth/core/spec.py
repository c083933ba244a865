"""A model as data: what a family file produces and `models/lower` consumes.

Owns the vocabulary only: frozen dataclasses without arithmetic, without arrays, without files.
Widths are in elements, `eps` and `theta` as the checkpoint's configuration gives them. A few lines
over 400: it is one vocabulary, whose words refer to each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class DType(StrEnum):
    """Storage precision of weights and KV cache; arithmetic is float32 on the CPU."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"

    @property
    def num_bytes(self) -> int:
        """Bytes an element."""
        return 4 if self is DType.FLOAT32 else 2


class KvDType(StrEnum):
    """How keys and values are stored: as floats, or as codes with a scale for each token and head.

    `fp8` is e4m3. Of `int4` keys are rotated first, and values have a scale for every 64 elements.
    """

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"  # of transformers' models on a GPU
    INT8 = "int8"
    INT4 = "int4"
    FP8 = "fp8"

    @property
    def is_coded(self) -> bool:
        """Whether there are codes and scales."""
        return self in {KvDType.INT8, KvDType.INT4, KvDType.FP8}

    @property
    def bits(self) -> int:
        """Bits an element, without scales."""
        return {KvDType.FLOAT32: 32, KvDType.INT4: 4, KvDType.INT8: 8, KvDType.FP8: 8}.get(self, 16)


def float_kv(dtype: DType) -> KvDType:
    """How the kernels keep keys and values of a model without codes.

    There are none for float16 ones, which float32 holds.
    """
    return KvDType.FLOAT32 if dtype is DType.FLOAT16 else KvDType(dtype)


class RopePairing(StrEnum):
    """Which two elements of a head one angle rotates."""

    HALF = "half"  # (i, i + rotary_dim / 2): Llama, Mistral, Qwen
    INTERLEAVED = "interleaved"  # (2i, 2i + 1): GLM


class Activation(StrEnum):
    """Activation of an MLP."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"  # 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))
    GELU = "gelu"  # 0.5 x (1 + erf(x / √2))
    QUICK_GELU = "quick_gelu"  # x · sigmoid(1.702 x)


class SlotKind(StrEnum):
    """How a weight is used, which decides its packed layout."""

    LINEAR = "linear"  # [rows = out, cols = in], panels of output columns
    TABLE = "table"  # [rows = vocabulary, cols = hidden], gathered by row
    VECTOR = "vector"  # [rows], always float32


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """How the elements of a weight are stored: as `dtype`, or as codes of `bits` bits.

    `group_size` columns of a row share a scale, and a zero point where not `symmetric`. Scales are
    bfloat16, or float32 where `wide_scales`: those of a checkpoint that bfloat16 does not hold.
    `int8_rows`: what a linear layer multiplies it with is rounded to int8, each group of
    `group_size` values of a row by a scale of its own; otherwise rows stay float32.
    `residual_rows`: of them, groups with outliers keep what rounding left as a second int8.
    `is_float`: the codes, of 8 bits, are FP8 (e4m3) numbers, without a zero point and with float32
    rows.
    """

    dtype: DType = DType.FLOAT32
    bits: int = 0  # 0, 4 or 8
    group_size: int = 0
    symmetric: bool = True
    int8_rows: bool = False
    wide_scales: bool = False
    is_float: bool = False
    residual_rows: bool = False

    @property
    def storage(self) -> str:
        """Such as "int4", "fp8" or "bfloat16"."""
        if not self.bits:
            return str(self.dtype)
        return "fp8" if self.is_float else f"int{self.bits}"

    @property
    def name(self) -> str:
        """Such as "int4 (groups of 128, int8 rows)" or "bfloat16"."""
        if not self.bits:
            return str(self.dtype)
        rows = ", int8 rows" if self.int8_rows else ""
        rows += " with residuals" if self.residual_rows else ""
        zero = "" if self.symmetric else ", zero points"
        wide = ", float32 scales" if self.wide_scales else ""
        return f"{self.storage} (groups of {self.group_size}{zero}{wide}{rows})"

    @property
    def scale_bytes(self) -> int:
        """Bytes a scale."""
        return 4 if self.wide_scales else 2


@dataclass(frozen=True, slots=True)
class CodesForm:
    """How a checkpoint stores a matrix as codes, or in a floating point of 8 bits.

    `format` names the layout: one of compressed-tensors, or the name of another format; `bits` 0:
    it is read as floating point. `group_size` columns of a row share a scale, 0: all of them.
    `block`: rows and columns that share a scale instead. `version`: of GPTQ's zero points.
    `is_ordered`: GPTQ's columns are in an order by activation. `heads`: the rows of so many heads
    lie in another order than a checkpoint's, as llama.cpp has them: neighbours turn together where
    a checkpoint has halves (Llama); with `rotary`, so many first rows of a head are halves where a
    checkpoint has neighbours (GLM-4 with M-RoPE). `converted`: what the user is told that it
    was, where no kernel reads it; empty: it is kept exactly.
    """

    format: str
    bits: int
    group_size: int
    symmetric: bool
    block: tuple[int, int] = (0, 0)
    version: int = 0
    is_ordered: bool = False
    heads: int = 0
    rotary: int = 0
    converted: str = ""


@dataclass(frozen=True, slots=True)
class WeightSource:
    """`num_rows` rows from `first_row` of one checkpoint tensor.

    0 rows: the whole tensor, which then is the slot's only source. Of a tensor with three
    dimensions the first two count as rows. `otherwise` is where a checkpoint without `tensor`
    keeps the same rows.
    """

    tensor: str
    num_rows: int
    first_row: int = 0
    otherwise: WeightSource | None = None


@dataclass(frozen=True, slots=True)
class WeightSlot:
    """One packed tensor of the program: its sources are concatenated along the rows.

    A vector has `cols` 1. Slots of norm weights have "norm" in their names. `offset` is added to
    every element of a vector when it is loaded, in float32 (Gemma's norms multiply by 1 + w).
    A linear slot may stack `stack` matrices of `rows` rows (experts), each of which is packed by
    itself; its sources then have `total_rows` rows. `stored`: the checkpoint has it as codes;
    `parts`: in which form each source, where they differ.
    """

    name: str
    kind: SlotKind
    rows: int
    cols: int
    sources: tuple[WeightSource, ...]
    quant: QuantSpec = QuantSpec()
    offset: float = 0.0
    stack: int = 1
    stored: CodesForm | None = None
    parts: tuple[CodesForm | None, ...] = ()

    @property
    def total_rows(self) -> int:
        """Rows of all stacked matrices together."""
        return self.rows * self.stack

    def form(self, index: int) -> CodesForm | None:
        """How the checkpoint stores the source `index`; None: plainly."""
        return self.parts[index] if self.parts else self.stored


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding (arXiv 2104.09864).

    `inv_freq`: [rotary_dim / 2] radians a position, after any scaling; `sections`: how many of the
    frequencies follow the temporal, height and width position (M-RoPE); empty: all follow row 0.
    `attention_scaling` multiplies cosine and sine (yarn).
    """

    rotary_dim: int
    pairing: RopePairing
    inv_freq: tuple[float, ...]
    sections: tuple[int, ...] = ()
    attention_scaling: float = 1.0


@dataclass(frozen=True, slots=True)
class NormSpec:
    """Norm over a row, with the weight of slot `weight`: RMS, or layer norm where `centered`."""

    weight: str
    eps: float
    bias: str | None = None
    centered: bool = False


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Causal self-attention; q, k and v rows are one matrix in the order q, k, v.

    `q_norm` and `k_norm` normalize each head before the rotation. `rope` None: the model's.
    `soft_cap` c > 0: a score s becomes c · tanh(s / c) before the mask.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    qkv: str
    qkv_bias: str | None
    out: str
    out_bias: str | None = None
    window: int = 0  # 0: full attention
    q_norm: NormSpec | None = None
    k_norm: NormSpec | None = None
    rope: RopeSpec | None = None
    soft_cap: float = 0.0


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """Gated MLP: down(act(gate(x)) · up(x)); the rows of gate come before those of up."""

    intermediate_size: int
    activation: Activation
    gate_up: str
    down: str
    gate_up_bias: str | None = None
    down_bias: str | None = None


class RouterScoring(StrEnum):
    """What makes scores of a router's logits."""

    SOFTMAX = "softmax"  # over all experts
    SIGMOID = "sigmoid"  # each expert on its own


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """Which experts serve a row, and with what weight.

    The `top_k` experts that rank best are chosen; of equals the one with the lower index. Experts
    rank by score, or by score + `bias` (a vector slot) where there is one. With `num_groups` > 1
    only experts of the `top_groups` best groups are considered, and a group's rank is the sum of
    its two best experts'. A chosen expert's weight is its score, divided by the sum of the chosen
    ones where `normalize`, times `scale`.
    """

    num_experts: int
    top_k: int
    scoring: RouterScoring
    normalize: bool
    scale: float = 1.0
    bias: str | None = None
    num_groups: int = 1
    top_groups: int = 1


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """Mixture of gated MLPs: the weighted sum of those that the router chooses for a row.

    `router_weight` gives the logits, [num_experts, hidden]. `gate_up` stacks gate and up of expert
    after expert, [intermediate, hidden] each; `down` stacks [hidden, intermediate]. A `shared` MLP
    serves every row, with weight 1.
    """

    router: RouterSpec
    router_weight: str
    intermediate_size: int
    activation: Activation
    gate_up: str
    down: str
    shared: MlpSpec | None = None


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One decoder layer. `post_*` norms are applied to a branch before its residual add."""

    attention_norm: NormSpec
    attention: AttentionSpec
    mlp_norm: NormSpec
    mlp: MlpSpec | MoeSpec
    post_attention_norm: NormSpec | None = None
    post_mlp_norm: NormSpec | None = None


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """A linear layer on its own, of `width` outputs."""

    width: int
    weight: str
    bias: str | None = None


@dataclass(frozen=True, slots=True)
class PlainMlpSpec:
    """MLP without a gate: down(act(up(x)))."""

    up: LinearSpec
    activation: Activation
    down: LinearSpec


@dataclass(frozen=True, slots=True)
class VisionAttentionSpec:
    """Attention of every row of an image to all of its rows, or to those of its window.

    k and v rows are one matrix.

    q stands by itself: keys and values of all rows are there before the first row attends, and
    what attends needs no buffer for the whole image.
    """

    num_heads: int
    head_dim: int
    scale: float
    q: LinearSpec
    kv: LinearSpec
    out: LinearSpec
    is_windowed: bool = False


@dataclass(frozen=True, slots=True)
class VisionLayerSpec:
    """One layer of a vision encoder: norm, attention, norm, MLP, each branch added."""

    attention_norm: NormSpec
    attention: VisionAttentionSpec
    mlp_norm: NormSpec
    mlp: MlpSpec | PlainMlpSpec


# What follows the joining of patches, in order; a layer norm stands between as a NormSpec does.
MergerPart = LinearSpec | NormSpec | Activation | MlpSpec


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """A vision encoder: its rows are patches, which its end joins to rows of the text model.

    The `merge_size`² patches that become one row follow each other.

    `patch_values`: pixels of a patch, [channels, frames, height, width]. `position_table`: slot of
    `position_grid`² rows, stretched over the image bicubically (align_corners off, the border
    repeated). Rotations follow the rows of positions (0, patch row, patch column).

    `interleaved`: joined values are ordered by column first, then by patch (a convolution's weight
    as it lies), else patch by patch. `pixel_frames`, `min_pixels`, `max_pixels`: as in
    `ImageProcessorSpec`, for a model that says nothing of its images.
    """

    image_token_id: int
    pixel_frames: int
    min_pixels: int
    max_pixels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    patch_values: int
    hidden_size: int
    patch_embed: LinearSpec
    rope: RopeSpec
    layers: tuple[VisionLayerSpec, ...]
    merger: tuple[MergerPart, ...]
    interleaved: bool
    embed_norm: NormSpec | None = None
    position_table: str | None = None
    position_grid: int = 0
    final_norm: NormSpec | None = None
    window_tokens: int = 0  # side of a window, where layers attend within windows


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder model, complete: everything `models/lower` needs to write its program.

    `max_position_embeddings` is the longest context, any RoPE scaling included; `logit_soft_cap`
    c > 0: a logit l becomes c · tanh(l / c). `slots` are those of `vision` too.
    """

    family: str
    architecture: str
    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    layers: tuple[LayerSpec, ...]
    rope: RopeSpec
    embedding: str
    final_norm: NormSpec
    head: str  # the slot of the output matrix; equal to `embedding` when tied
    slots: tuple[WeightSlot, ...] = field(repr=False)
    embedding_scale: float = 1.0
    logit_soft_cap: float = 0.0
    vision: VisionSpec | None = None

    @property
    def tied(self) -> bool:
        """Whether one matrix serves as embedding and head."""
        return self.head == self.embedding
