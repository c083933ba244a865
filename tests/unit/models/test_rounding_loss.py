"""What a sample of the rows says of all of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.support.executors import require_cpu_library

from hearth.core.quality import RoundingLoss
from hearth.core.spec import DType, QuantSpec, SlotKind, WeightSlot
from hearth.kernels.codes import row_values
from hearth.kernels.cpu.quantize import quantize_rows
from hearth.kernels.packing import HostTensor
from hearth.models.formats.placing import Losses

ROWS, COLS = 8192, 512


def slot_of(bits: int, name: str = "w") -> WeightSlot:
    quant = QuantSpec(DType.BFLOAT16, bits, 128)
    return WeightSlot(name, SlotKind.LINEAR, ROWS, COLS, (), quant)


def tensor(seed: int, rows: int = ROWS) -> HostTensor:
    values = np.random.default_rng(seed).standard_normal((rows, COLS)).astype(np.float32)
    return HostTensor(values.reshape(-1).view(np.uint8), DType.FLOAT32, values.shape)


@pytest.fixture(autouse=True)
def kernels() -> None:
    require_cpu_library()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_sample_tells_what_all_rows_lose(bits: int) -> None:
    slot, rows = slot_of(bits), tensor(3)
    losses = Losses(with_rounding=True)
    losses.sample(slot, rows)
    found = losses.rounding()
    assert found is not None
    before = rows.data.view(np.float32).reshape(ROWS, COLS)
    after = row_values(quantize_rows(slot, rows), slot.quant)
    exact = float(((after - before) ** 2).sum() / (before**2).sum())
    assert found.errors == {f"int{bits}": pytest.approx(exact, rel=0.06)}


def test_pieces_count_by_their_rows() -> None:
    """Squares of two pieces add up as if their rows had been seen at once."""
    losses = Losses(with_rounding=True)
    large, small = tensor(1), tensor(2, rows=64)
    loud = HostTensor(
        (small.data.view(np.float32) * 100).view(np.uint8), DType.FLOAT32, small.shape
    )
    losses.sample(slot_of(4), large)
    losses.sample(slot_of(4), loud)
    loss = losses.rounded["int4", "w"]
    assert loss.total == pytest.approx(ROWS * COLS + 64 * COLS * 10_000, rel=0.05)


def test_the_worst_matrix_is_named_and_conversions_count() -> None:
    losses = Losses(with_rounding=True)
    losses.sample(slot_of(4, "good"), tensor(1))
    bad = tensor(2)
    values = bad.data.view(np.float32).reshape(ROWS, COLS)
    values[:, ::128] *= 1000  # nothing is left for the others of a group
    values[:, 1::128] *= 30
    losses.sample(slot_of(4, "bad"), bad)
    found = losses.rounding()
    assert found is not None
    assert found.worst in {"good", "bad"}
    shares = {name: loss.share for (_, name), loss in losses.rounded.items()}
    assert found.worst == max(shares, key=shares.__getitem__)
    assert found.worst_error == max(shares.values())


def test_nothing_is_sampled_unless_asked() -> None:
    losses = Losses()
    losses.sample(slot_of(4), tensor(1))
    assert losses.rounding() is None


def test_rows_of_zeros_lose_nothing() -> None:
    losses = Losses(with_rounding=True)
    zeros = replace(tensor(1), data=np.zeros(ROWS * COLS * 4, np.uint8))
    losses.sample(slot_of(4), zeros)
    assert losses.rounding() == RoundingLoss({"int4": 0.0}, "w", 0.0)


def test_the_line_names_every_storage() -> None:
    found = RoundingLoss({"int4": 0.00912, "int8": 4.1e-5}, "w", 0.01)
    line = "4-bit codes lose about 0.91 % of the weights' squares, 8-bit codes 0.0041 %"
    assert found.line() == line
