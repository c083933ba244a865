"""Run as a process: compiles attention and rope for several cards; prints a line of JSON each."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from unittest.mock import patch

import torch
from tests.support.triton_ahead import compiled

from hearth.core.program import KvGroupSpec
from hearth.core.spec import KvDType, RopePairing, RopeSpec
from hearth.kernels.triton import attention, attention_image, attention_options, kv, kv_codes, rope

META = torch.device("meta")
CARDS = {
    75: attention_options.Card(7, 64 * 1024, 40),
    80: attention_options.Card(8, 163 * 1024, 108),
    86: attention_options.Card(8, 99 * 1024, 28),
    90: attention_options.Card(9, 227 * 1024, 132),
}
KINDS = {"bfloat16": 0, "float16": 0, "int8": kv_codes.INT8, "fp8": kv_codes.FP8_NATIVE}
ROPE = RopeSpec(64, RopePairing.INTERLEAVED, (1.0,) * 32)
ROWS = 512


def launch_of(
    kernel: str, heads: int, kv_heads: int, dim: int, dtype: KvDType, rows: torch.dtype
) -> Callable[[], None]:
    """A call of a launcher with tensors that have no memory."""
    spec = KvGroupSpec(2, kv_heads, dim)
    with patch.object(kv, "_kind", lambda kind, _device: KINDS[str(kind)]):
        cache = kv.KvCache((spec,), (8,), 64, dtype, META)
    shape = attention.AttentionShape(heads, kv_heads, dim, dim**-0.5)
    qkv = torch.empty(ROWS, (heads + 2 * kv_heads) * dim, dtype=rows, device=META)
    out = torch.empty(ROWS, heads * dim, dtype=rows, device=META)
    integers = torch.empty(ROWS, dtype=torch.int32, device=META)
    tables = attention.StepTables(*[integers] * 6)
    match kernel:
        case "rows":
            return partial(attention.attend, qkv, out, cache, 0, 1, tables, shape)
        case "decode":
            scratch = torch.empty(1 << 20, device=META)
            return partial(
                attention.attend_decode, qkv, out, cache, 0, 1, tables, shape, scratch, 16, integers
            )
        case "image":
            return partial(attention_image.attend_image, qkv, out, integers, integers, shape)
        case _:
            angles = torch.empty(ROWS, 64, device=META)
            of_heads = rope.HeadShape(heads, kv_heads, dim)
            return partial(rope.rope_and_write, qkv, angles, integers, cache, 0, 1, of_heads, ROPE)


def main() -> None:
    """Of each argument: capability,kernel,heads,kv heads,head_dim,type of the cache."""
    for argument in sys.argv[1:]:
        capability, kernel, heads, kv_heads, dim, dtype = argument.split(",")
        card = CARDS[int(capability)]
        rows = torch.float16 if card.major < 8 else torch.bfloat16
        call = launch_of(kernel, int(heads), int(kv_heads), int(dim), KvDType(dtype), rows)
        with (
            patch.object(attention, "card_of", lambda _device, card=card: card),
            patch.object(attention_image, "card_of", lambda _device, card=card: card),
        ):
            for result in compiled(call, int(capability)):
                line = {"case": argument, "limit": card.shared_bytes} | asdict(result)
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
