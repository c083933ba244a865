"""Whether a StepPlan fits a program, its KV cache and its limits: for executors written in Python.

The C++ kernels check for themselves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import KernelError
from hearth.core.program import Embed, StepProgram
from hearth.core.step import KvConfig, LogitEdits, StepLimits, StepPlan
from hearth.kernels.encoder import check_encoder_rows


def check_plan(plan: StepPlan, program: StepProgram, kv: KvConfig, limits: StepLimits) -> None:
    """Raises KernelError when a plan contradicts itself or leaves the limits."""
    num_tokens, num_sequences = plan.tokens.shape[0], plan.context.shape[0]
    for name, value, maximum in (
        ("tokens", num_tokens, limits.max_tokens),
        ("sequences", num_sequences, limits.max_sequences),
        ("logits rows", plan.logit_rows.shape[0], limits.max_logit_rows),
    ):
        if value > maximum:
            raise KernelError(f"the plan has {value} {name}; permitted: up to {maximum}")
    if len(plan.encoder):
        embed = next(op for op in program.ops if isinstance(op, Embed))
        check_encoder_rows(plan, program.buffers[embed.out].width)
    if plan.row_start[0] != 0 or plan.row_start[-1] != num_tokens:
        raise KernelError(f"row_start covers up to {plan.row_start[-1]} of {num_tokens} tokens")
    if plan.sampling.edits is not None:
        _check_edits(plan.sampling.edits, program.vocab_size)
    for group in range(len(program.kv_groups)):
        _check_group(plan, group, kv)


def check_tokens(tokens: NDArray[np.int32], num_previous: int, vocab_size: int) -> None:
    """Ids are in the vocabulary, and references are to rows that the step before had.

    Raises KernelError.
    """
    if not tokens.size:
        return
    row = -1 - int(tokens.min())
    if row >= num_previous:
        raise KernelError(
            f"a token refers to row {row} of the step before, which had {num_previous}"
        )
    if (largest := int(tokens.max())) >= vocab_size:
        raise KernelError(f"token {largest} is outside the vocabulary of {vocab_size}")


def _check_edits(edits: LogitEdits, vocab_size: int) -> None:
    """Every token that a row counts or biases is in the vocabulary."""
    for name, tokens in (("count_tokens", edits.count_tokens), ("bias_tokens", edits.bias_tokens)):
        if tokens.size and (tokens.min() < 0 or tokens.max() >= vocab_size):
            raise KernelError(f"{name}: a token lies outside 0 to {vocab_size - 1}")


def _check_group(plan: StepPlan, group: int, kv: KvConfig) -> None:
    """Slots and blocks exist, and the blocks cover every key that a sequence reads."""
    num_blocks = kv.num_blocks[group]
    starts = plan.block_start[group]
    for name, values, end in (
        ("slot", plan.slots[group], num_blocks * kv.block_size),
        ("block", plan.blocks[starts[0] : starts[-1]], num_blocks),
    ):
        if values.size and (values.min() < 0 or values.max() >= end):
            raise KernelError(f"group {group}: a {name} lies outside 0 to {end - 1}")
    num_keys = plan.context + np.diff(plan.row_start)
    covered = (plan.first_block[group] + np.diff(starts)) * kv.block_size
    if (covered < num_keys).any():
        s = int(np.argmax(covered < num_keys))
        raise KernelError(
            f"group {group}: the blocks of sequence {s} cover {covered[s]} of {num_keys[s]} tokens"
        )
