"""How long GPTQ will take, before it begins: operations by shapes, speeds by a short measurement.

Per matrix of `rows` x `cols` and tokens: passes 2·rows·cols·tokens, and a little for parts that are
replayed; XᵀX cols²·tokens for each distinct input (half of it is made); its factor 4/3·cols³; the
columns rows·cols², two sweeps of descent 9·rows·cols²; and steps on one thread for every weight.
Good to a factor of two: attention, the disk and whoever else uses the processor are not in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

_REPLAYED = 1.2  # passes in all: Glm4 of 9 B runs its attention's last matrix three times
# Of steps on one thread, on a core of an EPYC 9005: what a layer of 9 B shapes took for columns,
# scales and descent (117 s), less their products at 195e9 operations a second, by its weights.
_PER_WEIGHT_S = 230e-9
_SIZE, _ROWS = 2048, 512  # of the products that are measured


@dataclass(frozen=True, slots=True)
class Speed:
    """Operations a second, with all threads."""

    rounded: float  # the layers' own products, in bfloat16 where it is used
    exact: float  # float32


@dataclass(slots=True)
class Operations:
    """Of all layers."""

    passes: float = 0.0
    exact: float = 0.0
    num_weights: int = 0

    def seconds(self, speed: Speed) -> float:
        """They take."""
        products = self.passes / speed.rounded + self.exact / speed.exact
        return products + self.num_weights * _PER_WEIGHT_S


def operations_of(matrices: Iterable[tuple[str, int, int]], num_tokens: int) -> Operations:
    """`matrices`: name, rows and columns of what becomes codes.

    Those of one module with as many columns are taken to read the same.
    """
    found, inputs = Operations(), set()
    for name, rows, cols in matrices:
        found.passes += _REPLAYED * 2 * rows * cols * num_tokens
        found.exact += 10 * rows * cols**2
        found.num_weights += rows * cols
        inputs.add((name.removesuffix(".weight").rpartition(".")[0], cols))
    for _, cols in inputs:
        found.exact += cols**2 * num_tokens + 4 / 3 * cols**3
    return found


def measured_speed(*, is_rounded: bool) -> Speed:
    """By products of a layer's size; takes a moment."""
    weight, rows = torch.ones(_SIZE, _SIZE), torch.ones(_ROWS, _SIZE)
    exact = _rate(lambda: linear(rows, weight))
    if not is_rounded:
        return Speed(exact, exact)
    small, narrow = weight.bfloat16(), rows.bfloat16()
    return Speed(_rate(lambda: linear(narrow, small)), exact)


def _rate(product: Callable[[], object]) -> float:
    least = float("inf")
    for _ in range(4):  # the first one is a warm-up
        begun = time.perf_counter()
        product()
        least = min(least, time.perf_counter() - begun)
    return 2 * _ROWS * _SIZE**2 / max(least, 1e-9)
