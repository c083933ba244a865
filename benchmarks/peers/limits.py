"""What no engine could beat with hearth's scheme, from bytes, operations and measured ceilings.

Weights: linear layers in int4 in groups of 128 with bfloat16 scales, the head in int8, each read
once a step. Arithmetic: linear layers at the int8 peak, of the last layer (behind its keys and
values) and the head for the rows alone whose logits are wanted; attention in pairs of bfloat16
(float32 where the processor has no products of pairs); memory and arithmetic overlap, kinds of
arithmetic do not. KV in bfloat16, read once a step and written never:
small beside the rest. Norms, rotations and sampling cost nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.ceilings import Ceiling, Ops
from benchmarks.peers.rows import RowSpec

from hearth.core.program import Attend, BufferRows, Linear
from hearth.core.spec import SlotKind
from hearth.kernels.packing import arena_bytes, packed_bytes
from hearth.models.loader import LoadedSpec, load_model_spec


@dataclass(frozen=True)
class Scheme:
    """What a token costs."""

    weight_bytes: int  # linear layers with the head, read for every step
    params: int  # that every token is multiplied with
    wanted_params: int  # those that the tokens alone need whose logits are wanted
    stored_bytes: int  # all packed weights, the embedding too
    kv_bytes: int  # of a token, all layers
    attend_flops: int  # a query and one key, all layers but the last
    wanted_attend_flops: int  # those of the last one: of queries alone whose logits are wanted


def scheme_of(model: Path, quantize: str = "int4") -> Scheme:
    """Of a model directory."""
    return program_scheme(load_model_spec(model, quantize=quantize))


def program_scheme(loaded: LoadedSpec) -> Scheme:
    """From the program that hearth runs, not from the configuration."""
    program = loaded.program
    linear = {slot.name: slot for slot in program.slots if slot.kind is SlotKind.LINEAR}
    wanted = {
        op.weight
        for op in program.ops
        if isinstance(op, Linear) and program.buffers[op.out].rows is BufferRows.LOGITS
    }
    attends = [op for op in program.ops if isinstance(op, Attend)]
    return Scheme(
        weight_bytes=sum(packed_bytes(slot) for slot in linear.values()),
        params=sum(slot.rows * slot.cols for slot in linear.values() if slot.name not in wanted),
        wanted_params=sum(linear[name].rows * linear[name].cols for name in wanted),
        stored_bytes=arena_bytes(program.slots),
        kv_bytes=sum(4 * op.num_kv_heads * op.head_dim for op in attends),
        attend_flops=sum(4 * op.num_heads * op.head_dim for op in attends[:-1]),
        wanted_attend_flops=4 * attends[-1].num_heads * attends[-1].head_dim,
    )


def step_floor_s(
    scheme: Scheme, ceiling: Ceiling, num_rows: int, num_logits: int, keys: float
) -> float:
    """The least time of one step; `keys`: pairs of a query and a key that it may look at.

    KV is read once a sequence in decode, where keys are its tokens; in prefill it is less than
    `keys` say, and arithmetic decides.
    """
    num_bytes = scheme.weight_bytes
    if num_rows == num_logits:
        num_bytes += round(scheme.kv_bytes * keys)
    int8_ops = 2.0 * (scheme.params * num_rows + scheme.wanted_params * num_logits)
    wanted_keys = keys * num_logits / num_rows
    pairs = scheme.attend_flops * keys + scheme.wanted_attend_flops * wanted_keys
    return ceiling.floor_s(num_bytes, Ops(int8=int8_ops, pairs=pairs))


def limit(spec: RowSpec, scheme: Scheme, ceiling: Ceiling) -> float:
    """Tokens a second."""
    streams = spec.num_streams
    if spec.is_prefill:
        tokens = streams * spec.prompt_tokens
        keys = tokens * (spec.prompt_tokens + 1) / 2
        return tokens / step_floor_s(scheme, ceiling, tokens, streams, keys)
    keys = streams * (spec.prompt_tokens + spec.new_tokens / 2)
    return streams / step_floor_s(scheme, ceiling, streams, streams, keys)
