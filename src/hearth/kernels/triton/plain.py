"""The kernels' functions in plain torch, with their signatures: what they are compared with.

The executor runs through them where it is asked to (`plain_kernels`): on the CPU, and to tell a
defect of a kernel from one of the executor. Nothing here is fast, and some of it waits for the
device. Arithmetic is float32, results are rounded to their buffer's type.
"""

# A kernel's launcher takes its tensors.
# ruff: noqa: PLR0913, PLR0917
from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from hearth.core.errors import KernelError
from hearth.core.program import KvGroupSpec
from hearth.core.spec import Activation, KvDType, RopePairing, RopeSpec, RouterSpec
from hearth.kernels.reference.experts import ExpertWeights, mix, route
from hearth.kernels.triton.layout import CodedMatrix, DenseMatrix, Matrix, unpack_words
from hearth.kernels.triton.plan_buffer import StepTables

_ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    Activation.SILU: functional.silu,
    Activation.GELU_TANH: lambda x: functional.gelu(x, approximate="tanh"),
    Activation.GELU: functional.gelu,
    Activation.QUICK_GELU: lambda x: x * torch.sigmoid(1.702 * x),
}
_KV_DTYPES = {
    KvDType.FLOAT32: torch.float32,
    KvDType.BFLOAT16: torch.bfloat16,
    KvDType.FLOAT16: torch.float16,
}


def dequantized(matrix: Matrix) -> torch.Tensor:
    """What a matrix stands for, [rows, cols] float32."""
    if isinstance(matrix, DenseMatrix):
        return matrix.data.float()
    return codes_of(matrix) * _per_column(matrix.scales, matrix)


def codes_of(matrix: CodedMatrix) -> torch.Tensor:
    """Codes less their zero points, or the FP8 numbers that they are, [rows, cols] float32."""
    if matrix.is_float:
        return matrix.codes.view(torch.float8_e4m3fn).float()
    codes = matrix.codes
    if matrix.bits == 4:
        codes = unpack_words(codes, matrix.cols)
    if matrix.zeros is None:
        return codes.float() - float(1 << matrix.bits - 1)
    return codes.float() - _per_column(matrix.zeros.float(), matrix)


def _per_column(values: torch.Tensor, matrix: CodedMatrix) -> torch.Tensor:
    """[rows, cols] of [groups, rows]."""
    return values.T.repeat_interleave(matrix.group_size, dim=1)[:, : matrix.cols]


def embed(
    table: Matrix,
    tokens: torch.Tensor,
    out: torch.Tensor,
    scale: float,
    feature_rows: torch.Tensor | None = None,
    features: torch.Tensor | None = None,
) -> None:
    """out[t] = scale · table[tokens[t]]; rows of an encoder as they are."""
    out.copy_(dequantized(table)[tokens.long()] * scale)
    if feature_rows is not None and features is not None:
        out.index_copy_(0, feature_rows.long(), features)


def norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    *,
    add: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    centered: bool = False,
) -> None:
    """Adds `add` to x first; then out = norm of x by its own magnitude, times weight, plus bias."""
    if add is not None:
        x += add
    values = x - x.mean(-1, keepdim=True) if centered else x
    normed = _rms_norm(values, weight, eps)
    out.copy_(normed if bias is None else normed + bias)


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def gate(x: torch.Tensor, out: torch.Tensor, activation: Activation) -> None:
    """Writes act(first half of x) · second half."""
    first, second = x.float().chunk(2, dim=-1)
    out.copy_(_ACTIVATIONS[activation](first) * second)


def activate(x: torch.Tensor, activation: Activation) -> None:
    """In place."""
    x.copy_(_ACTIVATIONS[activation](x.float()))


def select(x: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> None:
    """out[r] = x[rows[r]]."""
    out.copy_(x[rows.long()])


def soft_cap(x: torch.Tensor, cap: float) -> None:
    """In place."""
    x.copy_(torch.tanh(x / cap) * cap)


def linear(
    x: torch.Tensor,
    weight: Matrix,
    out: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    scratch: torch.Tensor | None = None,  # noqa: ARG001 — of the kernels' signature
    counters: torch.Tensor | None = None,  # noqa: ARG001 — as above
) -> None:
    """Writes x · weightᵀ (+ bias)."""
    out.copy_(functional.linear(x.float(), dequantized(weight), bias))


def gated_linear(
    x: torch.Tensor,
    weight: Matrix,
    out: torch.Tensor,
    activation: Activation,
    *,
    bias: torch.Tensor | None = None,
    scratch: torch.Tensor | None = None,  # noqa: ARG001 — of the kernels' signature
    counters: torch.Tensor | None = None,  # noqa: ARG001 — as above
) -> None:
    """`linear` to the type of `out`, then `gate`."""
    both = functional.linear(x.float(), dequantized(weight), bias)
    gate(both.to(out.dtype), out, activation)


def scratch_floats(max_tokens: int, rows: int, cols: int) -> int:  # noqa: ARG001 — as above
    """None is needed."""
    return 0


def experts(
    x: torch.Tensor,
    logits: torch.Tensor,
    out: torch.Tensor,
    router: RouterSpec,
    bias: torch.Tensor | None,
    gate_up: Matrix,
    down: Matrix,
    activation: Activation,
) -> None:
    """out[t] = the weighted sum of row t's experts."""
    routes = route(logits, router, bias)
    per_expert = [
        dequantized(matrix).reshape(router.num_experts, -1, _cols(matrix))
        for matrix in (gate_up, down)
    ]
    out.copy_(mix(x.float(), routes, ExpertWeights(*per_expert), _ACTIVATIONS[activation], None))


def _cols(matrix: Matrix) -> int:
    return matrix.data.shape[1] if isinstance(matrix, DenseMatrix) else matrix.cols


class PlainKvCache:
    """Keys and values by group: [blocks, layers, K and V, kv heads, block_size, head_dim]."""

    def __init__(
        self,
        groups: tuple[KvGroupSpec, ...],
        num_blocks: tuple[int, ...],
        block_size: int,
        dtype: KvDType,
        device: torch.device,
    ) -> None:
        """Raises KernelError for codes, which the kernels store."""
        if dtype not in _KV_DTYPES:
            raise KernelError(f"the plain torch path keeps no keys and values as {dtype}")
        self.block_size = block_size
        self.groups = [
            torch.zeros(
                (n, g.num_layers, 2, g.num_kv_heads, block_size, g.head_dim),
                dtype=_KV_DTYPES[dtype],
                device=device,
            )
            for g, n in zip(groups, num_blocks)
        ]

    def copy_block(self, group: int, source: int, target: int) -> None:
        """All layers of one block."""
        self.groups[group][target] = self.groups[group][source]


def angles(positions: torch.Tensor, rope: RopeSpec, out: torch.Tensor) -> None:
    """out[t] = cosines, then sines; a frequency follows the position row of its section."""
    inv_freq = torch.tensor(rope.inv_freq, dtype=torch.float32, device=out.device)
    section = torch.zeros(len(rope.inv_freq), dtype=torch.long, device=out.device)
    if rope.sections:
        counts = torch.tensor(rope.sections, device=out.device)
        section = torch.repeat_interleave(counts)
    angle = positions.float()[section].T * inv_freq
    out.copy_(torch.cat((angle.cos(), angle.sin()), dim=-1) * rope.attention_scaling)


def rope_and_write(
    qkv: torch.Tensor,
    angles: torch.Tensor | None,
    slots: torch.Tensor,
    cache: PlainKvCache,
    group: int,
    layer: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    rope: RopeSpec | None,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Norms and rotates q and k in place, then stores k and v of rows with a slot."""
    first_value = num_heads + num_kv_heads
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    turning = heads[:, :first_value].float()
    if q_norm is not None and k_norm is not None:
        normed = (
            _rms_norm(turning[:, :num_heads], q_norm, eps),
            _rms_norm(turning[:, num_heads:], k_norm, eps),
        )
        turning = torch.cat(normed, dim=1)
    if rope is not None and angles is not None:
        turning = _rotated(turning, angles, rope)
    heads[:, :first_value] = turning.to(qkv.dtype)
    stored = slots >= 0
    kept = slots[stored].long()
    block, offset = kept // cache.block_size, kept % cache.block_size
    for part, first in ((0, num_heads), (1, first_value)):
        rows = heads[stored, first : first + num_kv_heads]
        cache.groups[group][block, layer, part, :, offset] = rows.to(cache.groups[group].dtype)


def _rotated(heads: torch.Tensor, angles: torch.Tensor, rope: RopeSpec) -> torch.Tensor:
    half = rope.rotary_dim // 2
    cosine, sine = angles[:, None, :half], angles[:, None, half:]
    rotary, rest = heads[..., : rope.rotary_dim], heads[..., rope.rotary_dim :]
    is_half = rope.pairing is RopePairing.HALF
    first, second = (
        (rotary[..., :half], rotary[..., half:])
        if is_half
        else (rotary[..., 0::2], rotary[..., 1::2])
    )
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    if is_half:
        return torch.cat((*turned, rest), dim=-1)
    return torch.cat((torch.stack(turned, dim=-1).flatten(-2), rest), dim=-1)


def attend(
    qkv: torch.Tensor,
    out: torch.Tensor,
    cache: PlainKvCache,
    group: int,
    layer: int,
    tables: StepTables,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    is_decode: bool = False,  # noqa: ARG001 — of the kernels' signature
    scratch: torch.Tensor | None = None,  # noqa: ARG001 — as above
    counters: torch.Tensor | None = None,  # noqa: ARG001 — as above
) -> None:
    """Causal attention over keys and values as stored; rows of no sequence become zero."""
    out.zero_()
    starts, contexts = tables.row_start.tolist(), tables.context.tolist()
    firsts, begins = tables.first_block.tolist(), tables.block_start.tolist()
    for s, context in enumerate(contexts):
        first, last = starts[s], starts[s + 1]
        if first == last:
            continue
        queries = qkv[first:last, : num_heads * head_dim].float()
        blocks = tables.blocks[begins[s] : begins[s + 1]].long()
        stored = cache.groups[group][blocks, layer]  # [blocks, 2, kv heads, block size, dim]
        keys, values = stored.permute(1, 2, 0, 3, 4).flatten(2, 3).float()
        first_key = firsts[s] * cache.block_size
        num_keys = context + last - first - first_key
        visible = _visible(context, last - first, first_key, num_keys, window, out.device)
        repeats = num_heads // num_kv_heads
        keys, values = (x[:, :num_keys].repeat_interleave(repeats, dim=0) for x in (keys, values))
        scores = torch.einsum("nhd,hld->hnl", queries.view(-1, num_heads, head_dim), keys) * scale
        if soft_cap:
            scores = torch.tanh(scores / soft_cap) * soft_cap
        weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
        out[first:last] = torch.einsum("hnl,hld->nhd", weights, values).flatten(1).to(out.dtype)


def _visible(
    context: int, num_rows: int, first_key: int, num_keys: int, window: int, device: torch.device
) -> torch.Tensor:
    """[rows, keys]: whether a row sees a key."""
    row = context + torch.arange(num_rows, device=device)[:, None]
    key = first_key + torch.arange(num_keys, device=device)[None]
    visible = key <= row
    return visible & (key > row - window) if window else visible
