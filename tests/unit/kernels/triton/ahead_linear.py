"""Run as a process: compiles linear layers for several cards; prints a line of JSON for each."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import partial
from unittest.mock import patch

import torch
from tests.support.triton_ahead import compiled

from hearth.core.spec import Activation
from hearth.kernels.triton import linear as linears
from hearth.kernels.triton import tiles
from hearth.kernels.triton.layout import CodedMatrix, DenseMatrix, Matrix, words_a_row

SHAPES = {"split": (4096, 4096), "whole": (27_392, 4096), "gated": (27_392, 4096)}
META = torch.device("meta")


def weight_of(form: str, rows: int, cols: int, dtype: torch.dtype, group_size: int = 128) -> Matrix:
    if form == "dense":
        return DenseMatrix(torch.empty(rows, cols, dtype=dtype, device=META))
    groups = -(-cols // group_size)
    bits = 4 if "int4" in form else 8
    codes = torch.empty(rows, cols, dtype=torch.uint8, device=META)
    if bits == 4:
        codes = torch.empty(words_a_row(cols), rows, dtype=torch.int32, device=META)
    scales = torch.empty(groups, rows, device=META)
    zeros = torch.empty(groups, rows, dtype=torch.uint8, device=META) if "zeros" in form else None
    return CodedMatrix(codes, scales, zeros, bits, group_size, cols, form == "fp8")


def main() -> None:
    for argument in sys.argv[1:]:
        capability, form, shape, tokens, *group_size = argument.split(",")
        dtype = torch.float16 if capability == "75" else torch.bfloat16
        card = tiles.card_of_capability((int(capability) // 10, int(capability) % 10))
        rows, cols = SHAPES[shape]
        weight = weight_of(form, rows, cols, dtype, *map(int, group_size))
        x = torch.empty(int(tokens), cols, dtype=dtype, device=META)
        gated = shape == "gated"
        out = torch.empty(int(tokens), rows // 2 if gated else rows, dtype=dtype, device=META)
        scratch = torch.empty(tiles.scratch_floats(int(tokens), rows, cols), device=META)
        counters = torch.empty(tiles.NUM_COUNTERS, dtype=torch.int32, device=META)
        call = partial(linears.linear, x, weight, out, scratch=scratch, counters=counters)
        if gated:
            call = partial(linears.gated_linear, x, weight, out, Activation.SILU)
        with patch.object(tiles, "card_of", lambda _device, card=card: card):
            results = compiled(call, int(capability))
        for result in results:
            line = {"case": argument, "limit": card.shared_bytes} | asdict(result)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
