"""Whole quantized models: the kernels against plain torch that rounds by the same rule.

Both read the same codes. Rows are rounded to int8 by each on its own, and a value that lies within
float32's error of the middle between two codes may go either way: there, after checking that it
does, the reference goes on with the kernels' choice, since one step of one code is a thousand times
what is compared here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from tests.contract.plan_builder import PlanBuilder, teacher_forced
from tests.support.executors import require_cpu_library
from tests.support.hf_models import CASES, Expected, ModelCase
from tests.unit.kernels.programs import ISAS

from hearth.core.program import Experts, Quantize, StepProgram
from hearth.core.spec import DType, QuantSpec, WeightSlot
from hearth.core.step import ExecutorInfo, KvConfig, StepLimits, StepPlan, StepResult
from hearth.kernels.cpu.executor import CpuExecutor
from hearth.kernels.cpu.weights import CpuWeights
from hearth.kernels.packing import RESIDUAL_BELOW, RESIDUAL_STEPS, HostTensor
from hearth.kernels.reference import forward
from hearth.kernels.reference.executor import ReferenceExecutor
from hearth.kernels.reference.quantize import ROW_LEVELS, rounded_rows
from hearth.kernels.reference.weights import ReferenceWeights
from hearth.models.loader import LoadedSpec, load_model_spec
from hearth.models.lower import lower
from hearth.models.weights import load_weights

TOLERANCE = 1e-4  # of the largest logit; measured: up to 4e-5, mostly 1e-6
MIDDLE = 2e-3  # of a step: how near to the middle a value must be to be rounded either way
# Residuals are so fine that what MIDDLE allows for is half a step of theirs.
STEPS_OF_RESIDUALS = 1.5
MIDDLE_WITH_OUTLIERS = 6e-3  # sums of which an outlier's share cancels leave more
SOME_CODE = 600  # a byte of the first group of a panel
LIMITS = StepLimits(64, 16, 64, 512)


@dataclass(frozen=True)
class Scheme:
    """How the matrices of a model are stored, and what is multiplied with them."""

    bits: int
    group_size: int
    symmetric: bool
    int8_rows: bool
    is_float: bool = False
    residual: bool = False

    def __str__(self) -> str:
        """The test's name."""
        zero = "" if self.symmetric else "-zero"
        if self.is_float:
            return f"fp8-g{self.group_size}"
        rows = "a8" if self.int8_rows else "a32"
        return f"int{self.bits}-g{self.group_size}{zero}-{rows}{'-residual' * self.residual}"

    def of(self, slot: WeightSlot) -> QuantSpec:
        """For one slot; tables and the head have 8 bits without zero points."""
        old = slot.quant
        if self.is_float:
            return QuantSpec(old.dtype, 8, self.group_size, is_float=True)
        rows = self.int8_rows and old.int8_rows
        old = replace(
            old, group_size=self.group_size, int8_rows=rows, residual_rows=rows and self.residual
        )
        if old.bits == 8:
            return old
        return replace(old, bits=self.bits, symmetric=self.symmetric)


SCHEMES = [
    Scheme(bits, group_size, symmetric, int8_rows)
    for bits, group_size in ((4, 32), (4, 64), (4, 128), (8, 128))
    for symmetric in (True, False)
    for int8_rows in (True, False)
]
FP8 = [Scheme(8, size, symmetric=True, int8_rows=False, is_float=True) for size in (32, 128)]
# With an outlier in what norms give; see add_outliers.
RESIDUAL = [Scheme(bits, 64, True, True, residual=True) for bits in (4, 8)]
OUTLIER, OUTLIER_CHANNEL = 30.0, 5


def quantized_model(expected: Expected, scheme: Scheme) -> LoadedSpec:
    """A checkpoint whose matrices are stored by a scheme; everything else is float32."""
    loaded = load_model_spec(expected.path, "float32", quantize="int4")
    slots = tuple(
        replace(slot, quant=scheme.of(slot)) if slot.quant.bits else slot
        for slot in loaded.spec.slots
    )
    spec = replace(loaded.spec, slots=slots)
    return replace(loaded, spec=spec, program=lower(spec))


class LockStep:
    """An executor that runs the kernels and the reference side by side and compares their logits.

    The rows that the kernels rounded are read after each `Quantize` and settle the reference's
    ties.
    """

    def __init__(self, loaded: LoadedSpec, isa: str, mutant: int) -> None:
        require_cpu_library()
        self._program: StepProgram = loaded.program
        kv = KvConfig(16, (64,) * len(self._program.kv_groups), DType.FLOAT32)
        packed, weights = CpuWeights(self._program, isa=isa), ReferenceWeights(self._program)
        load_weights(loaded, packed)
        load_weights(loaded, weights)
        for slot in self._program.slots:
            if slot.quant.bits:
                weights.put_packed(slot, packed.packed(slot))
        slot = next(slot for slot in self._program.slots if "down" in slot.name)
        packed.packed(slot)[SOME_CODE] += mutant
        if any(slot.quant.residual_rows for slot in self._program.slots):
            add_outliers(loaded, packed, weights)
        self._cpu = CpuExecutor(self._program, packed, LIMITS, kv, 2, isa)
        self._reference = ReferenceExecutor(self._program, weights, LIMITS, kv)
        self._rounded: list[torch.Tensor] = []
        self.largest_difference = self.largest_logit = 0.0
        self.num_residual = 0  # values in groups that keep them

    @property
    def program(self) -> StepProgram:
        """The unfused program that both run."""
        return self._program

    @property
    def info(self) -> ExecutorInfo:
        """Of the kernels."""
        return self._cpu.info

    def execute(self, plan: StepPlan) -> StepResult:
        """One step of both."""
        rows = len(plan.tokens), len(plan.logit_rows)
        ops, done = self._program.ops, 0
        for index, op in enumerate(ops):
            if isinstance(op, Quantize) or (isinstance(op, Experts) and op.gated_codes is not None):
                self._cpu.execute_part(plan, done, index + 1)
                done = index + 1
                self._rounded.append(self._rounded_by(op, rows))
        result = self._cpu.execute_part(plan, done, -1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(forward, "rounded_rows", self._settled)
            logits = self._reference.execute(plan).logits
        assert logits is not None
        assert result.logits is not None
        difference = np.abs(result.logits - logits).max(initial=0.0)
        self.largest_difference = max(self.largest_difference, float(difference))
        self.largest_logit = max(self.largest_logit, float(np.abs(logits).max(initial=0.0)))
        assert not self._rounded
        return result

    def _rounded_by(self, op: Quantize | Experts, num_rows: tuple[int, int]) -> torch.Tensor:
        """What the kernels rounded last: the rows of an operation, or the inputs of `down`."""
        if isinstance(op, Quantize):
            buffer = self._program.buffers[op.out]
            return torch.from_numpy(self._cpu.read_buffer(op.out, num_rows[buffer.rows]))
        rows = num_rows[self._program.buffers[op.gated].rows]
        gated = torch.from_numpy(self._cpu.read_buffer(op.gated, rows))
        group_size = self._program.slot(op.down).quant.group_size
        residual = self._program.buffers[op.x].residual
        parts = gated.reshape(-1, op.intermediate_size)
        return rounded_rows(parts, group_size, residual=residual)

    def _settled(self, x: torch.Tensor, group_size: int, *, residual: bool) -> torch.Tensor:
        """The kernels' rows, which are the reference's but where a value lies in the middle."""
        own = rounded_rows(x, group_size, residual=residual)
        theirs = self._rounded.pop(0)
        step, is_fine = steps_of(x, group_size), torch.zeros_like(x, dtype=torch.bool)
        if residual:
            is_fine = has_residuals(x, group_size)
            self.num_residual += int(is_fine.sum())
            assert ((own - theirs).abs() <= STEPS_OF_RESIDUALS / RESIDUAL_STEPS * step)[
                is_fine
            ].all()
        middle = MIDDLE_WITH_OUTLIERS if residual else MIDDLE
        is_tie = ((x - (own + theirs) / 2).abs() <= middle * step) & (
            ((own - theirs).abs() / step - 1).abs() <= middle
        )
        assert ((own - theirs).abs() <= middle * step)[~is_tie & ~is_fine].all()
        return theirs

    def close(self) -> None:
        """Both."""
        self._cpu.close()
        self._reference.close()


def steps_of(x: torch.Tensor, group_size: int) -> torch.Tensor:
    """The step between two codes of each value, [T, width]; never 0."""
    groups = torch.split(x.abs(), group_size, dim=-1)
    steps = [group.amax(-1, keepdim=True).expand_as(group) / ROW_LEVELS for group in groups]
    return torch.cat(steps, dim=-1).clamp(min=1e-30)


def has_residuals(x: torch.Tensor, group_size: int) -> torch.Tensor:
    """Whether the group of each value keeps what rounding leaves, [T, width]."""
    codes = (rounded_rows(x, group_size) / steps_of(x, group_size)).round().abs()
    groups = torch.split(codes, group_size, dim=-1)
    small = [g.mean(-1, keepdim=True).expand_as(g) < RESIDUAL_BELOW for g in groups]
    return torch.cat(small, dim=-1)


def add_outliers(loaded: LoadedSpec, packed: CpuWeights, weights: ReferenceWeights) -> None:
    """One channel that the norms before MLPs and head make larger; the same in both.

    Not before attention: with scores that large, a query that is rounded to the other of two
    neighbouring bfloat16 shows in what comes out.
    """
    norms = {layer.mlp_norm.weight for layer in loaded.spec.layers}
    for name in sorted({*norms, loaded.spec.final_norm.weight}):
        slot = loaded.program.slot(name)
        gains = packed.packed(slot).view(np.float32)
        gains[OUTLIER_CHANNEL] *= OUTLIER
        values = gains[: slot.rows].copy()
        weights.put(slot, 0, HostTensor(values.view(np.uint8), DType.FLOAT32, (slot.rows,)))


def difference(expected: Expected, scheme: Scheme, isa: str, mutant: int = 0) -> float:
    """Of the largest logit; through three sequences of odd lengths, in steps of 37 tokens.

    `mutant` is added to one code of one weight that the kernels read.
    """
    loaded = quantized_model(expected, scheme)
    both = LockStep(loaded, isa, mutant)
    builder = PlanBuilder(16, 64, num_groups=len(loaded.program.kv_groups))
    teacher_forced(both, builder, [expected.sequence(i)[:45] for i in (0, 4, 9)], 37)
    both.close()
    assert (both.num_residual > 0) == scheme.residual
    return both.largest_difference / both.largest_logit


@pytest.mark.parametrize("scheme", [*SCHEMES, *FP8, *RESIDUAL], ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_every_scheme_equals_plain_torch_on_the_same_codes(
    expected_of: Callable[[ModelCase], Expected], isa: str, scheme: Scheme
) -> None:
    assert difference(expected_of(CASES[0]), scheme, isa) <= TOLERANCE


def test_one_code_that_is_one_off_shows(
    expected_of: Callable[[ModelCase], Expected],
) -> None:
    exact = Scheme(4, 64, symmetric=True, int8_rows=False)
    assert difference(expected_of(CASES[0]), exact, "auto", mutant=1) > 3 * TOLERANCE


@pytest.mark.parametrize("scheme", [SCHEMES[8], SCHEMES[11], FP8[1], RESIDUAL[0]], ids=str)
def test_every_family_equals_plain_torch_on_the_same_codes(
    expected: Expected, scheme: Scheme
) -> None:
    assert difference(expected, scheme, "auto") <= TOLERANCE
