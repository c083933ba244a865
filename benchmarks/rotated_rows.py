"""Rotating rows and matrices by a Hadamard transform, which hearth does not do: what it would lose.

    python -m benchmarks.rotated_rows [--samples 40] [--scales 1,30,100,300,1000]

In plain torch, on the small text model with the outliers of `quantization_loss`: each group of a
row, and of the columns of the matrix that reads it, by H / √n, or the largest power of two of
neighbours that divides the row; with and without fixed random signs before it. KL over all tokens
and over answers. docs/quantization.md has the figures, and why residuals are kept instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from benchmarks.quantization_loss import (
    LAYOUT,
    LIMITS,
    Outliers,
    Scheme,
    build,
    conversations,
    loaded_as,
    logits_of,
    loss_over,
    scheme,
)
from tools.demo_model import TEXT_MODEL_DIR

from hearth.core.spec import DType, KvDType, QuantSpec
from hearth.core.step import KvConfig
from hearth.kernels.reference import forward, weights
from hearth.kernels.reference.executor import ReferenceExecutor
from hearth.kernels.reference.kv_codes import rotate
from hearth.kernels.reference.quantize import rounded_rows, rounded_weights
from hearth.models.weights import load_weights

MOST_COLUMNS = 4096
SIGNS = torch.from_numpy(
    np.random.default_rng(7).choice(np.array([-1, 1], np.float32), MOST_COLUMNS)
)


@dataclass(frozen=True)
class Rotation:
    """`whole`: not group by group; `signs`: random ones first."""

    name: str
    whole: bool = False
    signs: bool = False

    def turned(self, x: torch.Tensor, group: int, *, back: bool = False) -> torch.Tensor:
        """[…, columns], columns a multiple of `group`."""
        columns = x.shape[-1]
        size = columns & -columns if self.whole else group
        signs = SIGNS[torch.arange(columns) % size] if self.signs else torch.ones(columns)
        if not back:
            x = x * signs
        x = rotate(x.reshape(*x.shape[:-1], -1, size)).reshape(x.shape)
        return x * signs if back else x


ROTATIONS = (
    Rotation("groups"),
    Rotation("groups, random signs", signs=True),
    Rotation("whole rows", whole=True),
    Rotation("whole rows, random signs", whole=True, signs=True),
)
SCHEMES = (
    replace(scheme(8), name="rows alone", float_weights=True),
    replace(scheme(8), name="int8 weights"),
    replace(scheme(4), name="int4 weights"),
)


@contextmanager
def rotating(rotation: Rotation | None) -> Iterator[None]:
    """The torch reference rounds what is rotated, and turns it back."""
    if rotation is None:
        yield
        return

    def rows(x: torch.Tensor, group: int, *, residual: bool = False) -> torch.Tensor:
        turned = rounded_rows(rotation.turned(x, group), group, residual=residual)
        return rotation.turned(turned, group, back=True)

    def matrix(values: torch.Tensor, quant: QuantSpec) -> torch.Tensor:
        if not quant.int8_rows:
            return rounded_weights(values, quant)
        turned = rounded_weights(rotation.turned(values.float(), quant.group_size), quant)
        return rotation.turned(turned, quant.group_size, back=True)

    forward.rounded_rows, weights.rounded_weights = rows, matrix
    try:
        yield
    finally:
        forward.rounded_rows, weights.rounded_weights = rounded_rows, rounded_weights


def executor_of(how: Scheme, outlier_scale: float) -> ReferenceExecutor:
    """Call it, and run it, within `rotating`."""
    loaded = loaded_as(TEXT_MODEL_DIR, how)
    program = loaded.program
    if how.float_weights:
        plain = tuple(replace(s, quant=QuantSpec(DType.FLOAT32)) for s in program.slots)
        program = replace(program, slots=plain)
        loaded = replace(loaded, program=program, spec=replace(loaded.spec, slots=plain))
    held = weights.ReferenceWeights(program)
    load_weights(loaded, Outliers(held, program, outlier_scale) if outlier_scale != 1 else held)
    num_blocks = (LAYOUT.num_blocks,) * len(program.kv_groups)
    kv = KvConfig(LAYOUT.block_size, num_blocks, KvDType.FLOAT32)
    return ReferenceExecutor(program, held, LIMITS, kv)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--scales", default="1,30,100,300,1000")
    given = parser.parse_args()
    torch.set_num_threads(1)
    samples = conversations(TEXT_MODEL_DIR, given.samples)
    base = logits_of(build(TEXT_MODEL_DIR, Scheme("none"), 1), samples)
    print("| s | in codes | rotated | KL | answers |\n|---|---|---|---|---|")
    for scale in map(float, given.scales.split(",")):
        for how in SCHEMES:
            for rotation in (None, *ROTATIONS):
                with rotating(rotation):
                    logits = logits_of(executor_of(how, scale), samples)
                tokens = loss_over(base, logits, samples, lambda s: list(range(1, len(s.ids))))
                answers = loss_over(base, logits, samples, lambda s: s.scored)
                name = rotation.name if rotation else "no"
                print(
                    f"| {scale:g} | {how.name} | {name} | {tokens.kl.mean:.2e} | "
                    f"{answers.kl.mean:.2e} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
