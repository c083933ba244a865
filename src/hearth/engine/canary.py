"""The start-up canary: a model whose kernels or weights give garbage is not served.

A few fixed prompts of token ids go through the executor that will serve, before the first request.
Refused are logits that are not finite, all equal, or the same whatever the prompt; one certain
token for all prompts; fused kernels that give other bits than single ones (small models); layers
whose products are far from the checkpoint's own rows (`canary_weights`); and best tokens that are
not those stored by `hearth quality --store`.

Nothing is stored by a start itself: the first start proves nothing, and a wrong kernel's answers
would become what later starts are held to.

What it costs: one step of 11 rows, about as long as one decode step, and products of a few
matrices. It finds wrong kernels and wrong packing; damage in a single matrix in the middle of the
model only where tokens are stored (or with --weight-cache-verify).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hearth.core.config import Choice
from hearth.core.errors import CanaryError
from hearth.core.quality import QualitySummary
from hearth.core.step import Executor
from hearth.core.units import MIB
from hearth.engine.engine import EngineShape
from hearth.engine.plain_steps import Layout, Rows, last_logits, step_plan
from hearth.kernels.packing import arena_bytes
from hearth.models.loader import LoadedSpec

if TYPE_CHECKING:
    from hearth.engine.outliers import OutlierProbe

# Of the prompts below; a new version makes stored tokens void.
CANARY_VERSION = 1
_LENGTHS = (1, 2, 3, 5)
# One token for all prompts, with less left for all others together: nothing that was trained
# answers so.
_CERTAIN = 1e-6
# A stored best token may fall behind the new best one by so many deviations of the logits: another
# instruction set rounds otherwise, while a token of a wrong model lies some four behind.
_MOST_BEHIND = 0.5
# Weights of a model whose fused and single kernels are compared whole: some 20 ms.
_SMALL_BYTES = 128 * MIB
WHAT_TO_DO = (
    "start once with --weight-cache-bytes 0, which packs the weights anew; with --isa generic, "
    "which shows whether kernels are wrong on this processor; or fetch the model again (hearth "
    "pull verifies it). --no-canary serves it all the same"
)


def canary_prompts(vocab_size: int, longest: int) -> list[list[int]]:
    """Token ids, the same for every model of a vocabulary; cut at `longest` tokens."""
    prompts = []
    for number, length in enumerate(_LENGTHS):
        ids = [(7919 * (number + 1) * (place + 3) + 104_729 * place) for place in range(length)]
        prompts.append([token % vocab_size for token in ids][-longest:])
    return prompts


def canary_logits(
    executor: Executor, shape: EngineShape, probe: OutlierProbe | None = None
) -> list[NDArray[np.float32]]:
    """Logits behind each prompt, [vocabulary]; uses the first blocks of each KV group.

    In one step, which reads the weights once and at which `probe` looks; where it may not hold all
    prompts, one by one.
    """
    limits, kv = shape.limits, shape.kv
    longest = min(limits.max_model_len, kv.block_size)
    prompts = canary_prompts(executor.program.vocab_size, longest)
    count = len(prompts)
    num_tokens = sum(map(len, prompts))
    if (
        limits.max_tokens < num_tokens
        or min(limits.max_sequences, limits.max_logit_rows, *kv.num_blocks) < count
    ):
        return last_logits(executor, prompts, Layout(kv.block_size, 1, 1, limits.max_tokens))
    rows = [Rows(prompt, 0, place, 1) for place, prompt in enumerate(prompts)]
    layout = Layout(kv.block_size, 1, count, num_tokens)
    plan = step_plan(rows, layout, len(kv.num_blocks))
    logits = (executor if probe is None else probe).execute(plan).logits
    assert logits is not None
    return list(logits)


def check_canary(
    executor: Executor,
    shape: EngineShape,
    stored: QualitySummary | None = None,
    loaded: LoadedSpec | None = None,
    probe: OutlierProbe | None = None,
) -> Choice:
    """Runs the prompts, and compares with the checkpoint of `loaded`, where there is one.

    `probe` keeps how far channels stand out. Returns what the banner says. Raises CanaryError where
    what comes out is no model's answer.
    """
    started = time.perf_counter()
    rows = canary_logits(executor, shape, probe)
    check_logits(rows)
    parts = [f"{len(rows)} prompts", *_check_kernels(executor, shape, rows, loaded)]
    if probe is not None and (line := probe.line()):
        parts.append(line)
    if stored is not None and stored.canary_version == CANARY_VERSION and stored.canary:
        _check_stored(rows, stored)
        parts.append(f"best tokens as measured on {stored.measured_at[:10]}")
    spent = 1000 * (time.perf_counter() - started)
    return Choice("canary", "passed", f"{', '.join(parts)}; {spent:.0f} ms")


def canary_tokens(executor: Executor, shape: EngineShape) -> tuple[int, ...]:
    """The best token behind each prompt, for a report."""
    return tuple(int(row.argmax()) for row in canary_logits(executor, shape))


def check_logits(rows: Sequence[NDArray[np.float32]]) -> None:
    """Whether [vocabulary] rows behind different prompts may be a model's. Raises CanaryError."""
    for number, row in enumerate(rows):
        if not np.isfinite(row).all():
            bad = int(np.count_nonzero(~np.isfinite(row)))
            raise _garbage(f"{bad:,} of {len(row):,} logits behind prompt {number} are not finite")
        if float(row.max()) == float(row.min()):
            raise _garbage(f"all logits behind prompt {number} are {float(row[0]):g}")
    if len(rows[0]) > 1 and all(np.array_equal(row, rows[0]) for row in rows[1:]):
        raise _garbage(f"the same logits follow {len(rows)} different prompts")
    best = {int(row.argmax()) for row in rows}
    if len(best) == 1 and all(_uncertainty(row) < _CERTAIN for row in rows):
        raise _garbage(f"token {best.pop()} follows every prompt with certainty")


def _uncertainty(row: NDArray[np.float32]) -> float:
    """The probability of all tokens but the best one."""
    powers = np.exp(row.astype(np.float64) - float(row.max()))
    return float((powers.sum() - 1) / powers.sum())


def _check_stored(rows: Sequence[NDArray[np.float32]], stored: QualitySummary) -> None:
    for number, (row, token) in enumerate(zip(rows, stored.canary)):
        behind = float(row.max() - row[token]) / float(row.std())
        if behind > _MOST_BEHIND:
            raise _garbage(
                f"behind prompt {number} the best token is {int(row.argmax())}; when this model's "
                f"quality was measured ({stored.measured_at[:10]}, hearth {stored.hearth_version}) "
                f"it was {token}, which is now {behind:.1f} deviations behind"
            )


def _check_kernels(
    executor: Executor,
    shape: EngineShape,
    rows: Sequence[NDArray[np.float32]],
    loaded: LoadedSpec | None,
) -> list[str]:
    """Of the C++ kernels: operations one by one against fused ones, and against the checkpoint."""
    if executor.info.name != "cpu":
        return []
    from hearth.engine.canary_weights import (
        compare_with_checkpoint,
        single_executor,
        single_shape,
    )
    from hearth.kernels.cpu.executor import CpuExecutor

    assert isinstance(executor, CpuExecutor)
    parts = []
    few = single_shape(shape)
    with closing(single_executor(executor, few)) as single:
        if loaded is not None:
            parts.append(compare_with_checkpoint(single, loaded))
        if arena_bytes(executor.program.slots) <= _SMALL_BYTES:
            _check_unfused(single, few, rows)
            parts.append("fused kernels have the bits of single ones")
    return parts


def _check_unfused(
    single: Executor, shape: EngineShape, rows: Sequence[NDArray[np.float32]]
) -> None:
    for number, (row, other) in enumerate(zip(rows, canary_logits(single, shape), strict=True)):
        if not np.array_equal(row, other):
            worst = float(np.abs(row - other).max())
            raise _garbage(
                f"fused kernels and single ones differ behind prompt {number}, by up to {worst:g}"
            )


def _garbage(what: str) -> CanaryError:
    return CanaryError(f"the start-up canary: {what}: the model is not served", hint=WHAT_TO_DO)
