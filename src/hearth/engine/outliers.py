"""Channels that stand out in what quantized layers read, seen while the canary's prompts run.

A group of an int8 row has one scale: a value that is 100 times as large as the others leaves them
one step. Where it is the same channel in most rows, the model may need the others all the same,
and nothing in its answers would tell. Looked at are the rows as they were rounded, which costs
reading them once; the inputs of experts' `down` are not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hearth.core.program import BufferRows, Experts, Linear, Quantize
from hearth.core.step import StepPlan, StepResult
from hearth.kernels.cpu.executor import CpuExecutor
from hearth.models.quantize import RESIDUAL

# Times the mean of the others; docs/quantization.md has what larger ones cost.
STANDS_OUT = 100.0
_MOST = 250.0  # what is left of the others is then below half a step


@dataclass(frozen=True, slots=True)
class Found:
    """An input of a quantized layer: how far its worst channel stands out, and who reads it."""

    weight: str
    ratio: float


@dataclass(slots=True)
class OutlierProbe:
    """Runs steps as the executor does, and looks at each `Quantize`'s rows on the way."""

    executor: CpuExecutor
    found: list[Found] = field(default_factory=list)

    def execute(self, plan: StepPlan) -> StepResult:
        """One step, in parts, with the bits of a whole one."""
        self.found.clear()
        done = 0
        for end, op, weight in _places(self.executor):
            self.executor.execute_part(plan, done, end)
            done = end
            buffer = self.executor.program.buffers[op.out]
            is_wanted = buffer.rows is BufferRows.LOGITS
            num_rows = len(plan.logit_rows) if is_wanted else len(plan.tokens)
            values = self.executor.read_buffer(op.out, num_rows)
            self.found.append(Found(weight, largest_ratio(values, buffer.group_size)))
        return self.executor.execute_part(plan, done, -1)

    @property
    def outliers(self) -> list[Found]:
        """Inputs with a channel that stands out, the worst first."""
        far = (one for one in self.found if one.ratio >= STANDS_OUT)
        return sorted(far, key=lambda one: -one.ratio)

    @property
    def keeps_residuals(self) -> bool:
        """Whether rows keep what rounding leaves, so that outliers cost nothing."""
        return any(buffer.residual for buffer in self.executor.program.buffers)

    def line(self) -> str:
        """For the banner; empty where no layer reads int8 rows."""
        if not self.found:
            return ""
        count, far = len(self.found), self.outliers
        if not far:
            return f"no channel stands out in the {count} inputs of int8 rows"
        return f"channels stand out in {len(far)} of {count} inputs of int8 rows"

    def warnings(self) -> tuple[str, ...]:
        """What the user is told; nothing where outliers cost nothing."""
        far = self.outliers
        if not far or self.keeps_residuals:
            return ()
        worst = far[0]
        size = f"{worst.ratio:.0f} times" if worst.ratio < _MOST else f"{_MOST:.0f} times or more"
        text = (
            f"in {len(far)} of {len(self.found)} inputs of quantized layers "
            f"one channel is {STANDS_OUT:.0f} times as large as its neighbours or more "
            f"({worst.weight}: {size}), and int8 rows leave the others few steps: --activations "
            f"{RESIDUAL} keeps them (docs/quantization.md: what they cost)"
        )
        return (text,)


def largest_ratio(rows: NDArray[np.float32], group_size: int) -> float:
    """Of [n, width]: how many times a channel exceeds the mean of the others of its group.

    Counted where it is the largest of its group in most rows, by the median of the rows; 0: none.
    """
    num_rows, width = rows.shape
    if num_rows == 0 or group_size < 2 or not np.isfinite(rows).all():
        return 0.0
    padded = np.pad(np.abs(rows), ((0, 0), (0, -width % group_size)))
    groups = padded.reshape(num_rows, -1, group_size)
    largest = groups.max(axis=2)
    place = groups.argmax(axis=2)
    counts = np.full(groups.shape[1], group_size)
    counts[-1] -= -width % group_size
    others = (groups.sum(axis=2) - largest) / np.maximum(counts - 1, 1)
    ratio = largest / np.maximum(others, np.maximum(largest / np.float32(_MOST), 1e-30))
    ratio = np.where(counts > 1, ratio, 0)  # alone in its group, a value loses nothing
    usual = np.sort(place, axis=0)[num_rows // 2]  # a place of more than half of the rows, if any
    is_same = place == usual
    score = np.sort(np.where(is_same, ratio, 0), axis=0)[(num_rows - 1) // 2]
    return float(np.where(2 * is_same.sum(axis=0) > num_rows, score, 0).max())


def _places(executor: CpuExecutor) -> list[tuple[int, Quantize, str]]:
    """Where a run may stop behind each rounding, the rounding, and a matrix that reads its rows."""
    ops = executor.program.ops
    ends = {
        at: group.first + group.count
        for group in executor.fusion.groups
        for at in range(group.first, group.first + group.count)
    }
    places = []
    for at, op in enumerate(ops):
        if isinstance(op, Quantize):
            reader = next(
                o for o in ops[at + 1 :] if isinstance(o, Linear | Experts) and o.x == op.out
            )
            weight = reader.weight if isinstance(reader, Linear) else reader.gate_up
            places.append((ends.get(at, at + 1), op, weight))
    return places
