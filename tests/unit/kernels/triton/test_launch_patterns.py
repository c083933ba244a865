"""Which operations one launch serves, and what becomes of the others."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from hearth.cli.settings import BUILT_IN_DIR
from hearth.core.config import CodesConfig
from hearth.core.errors import KernelError
from hearth.core.program import (
    Add,
    BufferSpec,
    Embed,
    Gate,
    HeadNorm,
    KvWrite,
    Linear,
    Norm,
    Op,
    Rope,
    Sample,
    StepProgram,
)
from hearth.core.spec import Activation, DType, RopePairing, RopeSpec, SlotKind
from hearth.core.step import StepLimits
from hearth.kernels.triton.layout import matrix_bytes
from hearth.kernels.triton.memory import activation_bytes, slot_bytes, weight_places
from hearth.kernels.triton.patterns import (
    LaunchKind,
    match_launches,
    unused_buffers,
    wide_buffers,
)
from hearth.models.loader import LoadedSpec, load_model_spec

LIMITS = StepLimits(64, 8, 16, 256)
ROPE = RopeSpec(4, RopePairing.HALF, (1.0, 0.5))


def built_in(quantize: str = "none") -> LoadedSpec:
    codes = CodesConfig(activations="float32", group_size=128, zero_points=False)
    return load_model_spec(Path(BUILT_IN_DIR), quantize=quantize, codes=codes)


def program_of(*ops: Op) -> StepProgram:
    buffers = tuple(BufferSpec(name, 8) for name in ("x", "y", "z"))
    return StepProgram(buffers, (*ops, Sample(0)), (), (), 10)


def kinds(program: StepProgram) -> list[LaunchKind]:
    return [launch.kind for launch in match_launches(program)]


def test_a_layer_with_four_norms_is_ten_launches() -> None:
    """Norm (with the sum before it), qkv, rope + write, attention, out, norm of the branch, norm
    with the sum, gate and up with the gate, down, norm of the branch."""
    program = built_in().program
    launches = match_launches(program)
    assert sum(launch.count for launch in launches) == len(program.ops) - 1
    seen = [launch.kind for launch in launches]
    layers = program.kv_groups[0].num_layers
    assert seen.count(LaunchKind.ROPE_WRITE) == layers
    assert seen.count(LaunchKind.ATTEND) == layers - 1
    assert seen.count(LaunchKind.ATTEND_WANTED) == 1
    assert LaunchKind.ADD not in seen
    around = 5  # embedding, angles, wanted rows, last norm with its sum, head
    assert len(seen) == 10 * layers + around


def test_a_sum_goes_into_the_norm_behind_it() -> None:
    assert kinds(program_of(Add(0, 1), Norm(0, "n", 1e-5, 2))) == [LaunchKind.ADD_NORM]


def test_a_sum_stays_alone_where_the_norm_is_of_something_else_or_replaces_it() -> None:
    other = program_of(Add(0, 1), Norm(1, "n", 1e-5, 2))
    assert kinds(other) == [LaunchKind.ADD, LaunchKind.NORM]
    replaced = program_of(Add(0, 1), Norm(0, "n", 1e-5, 0))
    assert kinds(replaced) == [LaunchKind.ADD, LaunchKind.NORM]
    assert match_launches(replaced)[0].reason == "the norm replaces the sum"
    assert kinds(program_of(Add(0, 1), Norm(0, "n", 1e-5, 1))) == [LaunchKind.ADD_NORM]


def test_a_gate_goes_into_the_linear_layer_that_writes_for_it_alone() -> None:
    linear, gate = Linear(0, "w", None, 1), Gate(1, Activation.SILU, 2)
    alone = program_of(linear, gate)
    assert kinds(alone) == [LaunchKind.GATED_LINEAR]
    assert unused_buffers(alone, match_launches(alone)) == {1}
    shared = program_of(linear, gate, Add(0, 1))
    assert kinds(shared) == [LaunchKind.LINEAR, LaunchKind.GATE, LaunchKind.ADD]


def test_norms_and_rotation_of_heads_are_part_of_their_kv_write() -> None:
    write, rope = KvWrite(0, 0, 0, 2, 1, 4), Rope(0, 1, 3, 4, ROPE)
    norm = HeadNorm(0, "q", "k", 1e-6, 2, 1, 4)
    for ops in ((norm, rope, write), (rope, write), (norm, write), (write,)):
        assert kinds(program_of(*ops)) == [LaunchKind.ROPE_WRITE]


def test_a_rotation_of_other_heads_than_are_stored_is_refused() -> None:
    write = KvWrite(0, 0, 0, 2, 1, 4)
    for rope in (Rope(1, 2, 3, 4, ROPE), Rope(0, 1, 2, 4, ROPE)):
        with pytest.raises(KernelError, match="no KV write of the same heads"):
            match_launches(program_of(rope, write))


def test_rows_of_int8_are_refused_with_what_to_set() -> None:
    loaded = load_model_spec(Path(BUILT_IN_DIR), quantize="int8")
    with pytest.raises(KernelError, match="no kernel for the operation Quantize") as raised:
        match_launches(loaded.program)
    assert "--activations float32" in str(raised.value.hint)


def test_the_residual_stream_and_logits_are_float32_and_nothing_else_of_a_layer() -> None:
    program = built_in().program
    wide = {program.buffers[i].name for i in wide_buffers(program)}
    assert {"hidden", "logits"} <= wide
    assert not {"qkv", "attention", "gate_up", "gated"} & wide


def test_a_norm_behind_a_branch_makes_the_branch_float32() -> None:
    """As Gemma has it: what is normed is float32 whatever wrote it."""
    program = program_of(Embed("t", 0), Norm(1, "n", 1e-5, 2), Add(0, 2))
    assert wide_buffers(program) == {0, 1}


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_slots_lie_behind_each_other_and_take_what_the_layout_says(quantize: str) -> None:
    slots = built_in(quantize).program.slots
    places, total = weight_places(slots, DType.BFLOAT16)
    ends = []
    for slot in slots:
        size, place = slot_bytes(slot, DType.BFLOAT16), places[slot.name]
        parts = ((place.data, size.data), (place.scales, size.scales), (place.zeros, size.zeros))
        ends += [(first, first + count) for first, count in parts if count]
        if slot.kind is not SlotKind.VECTOR:
            assert size.data + size.scales + size.zeros == matrix_bytes(slot)
    ends.sort()
    assert all(last <= first for (_, last), (first, _) in pairwise(ends))
    assert ends[-1][1] <= total
    assert all(first % 256 == 0 for first, _ in ends)


def test_activations_take_half_in_sixteen_bits_but_for_the_wide_ones() -> None:
    program = built_in().program
    whole = activation_bytes(program, LIMITS, DType.FLOAT32)
    assert whole / 2 < activation_bytes(program, LIMITS, DType.BFLOAT16) < whole
    more = replace(LIMITS, max_tokens=128)
    assert activation_bytes(program, more, DType.FLOAT32) > whole
