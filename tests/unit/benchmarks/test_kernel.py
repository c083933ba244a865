"""The programs of `benchmarks/kernel` run, and do what their floors are reckoned from."""

from __future__ import annotations

from dataclasses import replace

import pytest
from benchmarks.kernel import Rig
from benchmarks.kernel_cases import (
    QUANTS,
    SHAPES,
    Bed,
    attention_beds,
    linear_beds,
    row_op_beds,
)
from benchmarks.kernel_steps import POINTS, loaded
from benchmarks.peers.limits import program_scheme

from hearth.core.program import Linear
from hearth.kernels.packing import packed_bytes

TINY = replace(SHAPES["9b"], hidden=256, intermediate=384, heads=4, vocabulary=320)
ROTATED = 1 << 20


def beds() -> list[Bed]:
    linear = [bed for scheme in QUANTS for bed in linear_beds(TINY, scheme, (1, 3), ROTATED)]
    return [*linear, *row_op_beds(TINY, (1, 3)), *attention_beds(TINY, (64, 90), 32, ROTATED)]


def test_every_program_runs_with_and_without_its_operation() -> None:
    for bed in beds():
        rig = Rig(bed, threads=1, isa="auto")
        rig.warm()
        without, full = rig.times(bed.points[-1], 1, least_s=0.0)
        rig.close()
        assert len(without) == len(full) == 1, bed.name


@pytest.mark.parametrize("scheme", QUANTS)
def test_every_copy_of_a_linear_layer_has_weights_of_its_own(scheme: str) -> None:
    for bed in linear_beds(TINY, scheme, (1,), ROTATED):
        names = {op.weight for op in bed.copies if isinstance(op, Linear)}
        sizes = [packed_bytes(slot) for slot in bed.slots if slot.name in names]
        assert len(names) == len(bed.copies)
        assert sum(sizes) >= ROTATED
        assert bed.points[0].num_bytes == sizes[0]


def test_the_floor_of_a_step_is_that_of_the_program_that_is_served() -> None:
    scheme = program_scheme(loaded("1.5b", "int4"))
    assert scheme.params + scheme.wanted_params == pytest.approx(1.40e9, rel=0.01)
    assert scheme.weight_bytes == pytest.approx(0.76e9, rel=0.01)
    assert scheme.kv_bytes == 22 * 2 * 4 * 128 * 2
    assert {p.label for p in POINTS} == {"decode", "prefill", "prefill @1536"}
