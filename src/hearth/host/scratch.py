"""Bytes that a program needs beside its weights and its KV cache: buffers, and what threads keep.

The sizes are those of the CPU kernels; their sources stand beside them.
"""

from __future__ import annotations

from hearth.core.program import BufferRows, EncoderProgram, Experts, StepProgram
from hearth.core.units import MIB, ceil_div, round_up
from hearth.kernels.fuse import Fusion, fuse
from hearth.kernels.packing import (
    ENCODER_CHUNK_ROWS,
    PANEL_COLUMNS,
    buffer_row_bytes,
    row_bytes,
)

# A thread's share of the results of attention that is split by keys (csrc/ops_attention.cpp).
SPLIT_BYTES = 2 * MIB
# A thread's sums and unpacked codes of a tile of a quantized layer (csrc/kernels.h).
CODES_BYTES = 88 * 1024
TILE_BYTES = 96 * 1024  # what a thread keeps of a tile of fused operations
TILE_ROWS = 96  # that a linear tile takes at a time (csrc/kernels.h)
IMAGE_QUERIES = 96  # patches that a thread attends with together (csrc/ops_attention.cpp)
SAMPLER_BYTES = 20  # a weight and two keys to sort by for each token of the vocabulary
# Of the second executor that the start-up canary has (engine/canary_weights): rows of tokens and of
# logits, and blocks of each KV group.
CANARY_TOKENS = 16
CANARY_PLACES = 4


def scratch_bytes(
    program: StepProgram, max_tokens: int, max_logit_rows: int, fusion: Fusion | None = None
) -> int:
    """Bytes of the program's buffers for one step: padded rows of tokens and of logits.

    Without those that stay within tiles; beside them, the numbers of the pairs of token and expert.
    """
    without_memory = frozenset[int]() if fusion is None else fusion.tile_buffers
    top_k = max((op.router.top_k for op in program.ops if isinstance(op, Experts)), default=0)
    return 4 * max_tokens * top_k + sum(
        round_up(buffer_row_bytes(buffer), 4 * PANEL_COLUMNS)
        * (max_tokens if buffer.rows is BufferRows.TOKENS else max_logit_rows)
        for number, buffer in enumerate(program.buffers)
        if number not in without_memory
    )


def encoder_bytes(encoder: EncoderProgram, max_patches: int, fused_threads: int) -> int:
    """Bytes of an encoder's buffers: some for a whole image, the others for a chunk of it.

    `fused_threads`: 0 where operations run one by one.
    """
    chunk = min(ENCODER_CHUNK_ROWS, max_patches)
    rows = {
        BufferRows.TOKENS: chunk,
        BufferRows.LOGITS: 1,
        BufferRows.IMAGE: max_patches,
        BufferRows.MERGED: ceil_div(chunk, encoder.merge_rows),
    }
    program = encoder.program
    without_memory = frozenset[int]()
    if fused_threads:
        without_memory = fuse(program, fused_threads, cuts=encoder.phases).tile_buffers
    return sum(
        round_up(buffer_row_bytes(buffer), 4 * PANEL_COLUMNS) * rows[buffer.rows]
        for number, buffer in enumerate(program.buffers)
        if number not in without_memory
    )


def kept_bytes(program: StepProgram, num_threads: int, fusion: Fusion | None) -> int:
    """What the threads of an executor keep, sampling and experts' rows included."""
    each = program.vocab_size * SAMPLER_BYTES + expert_bytes(program)
    return num_threads * each + thread_bytes(program, num_threads, fusion)


def canary_bytes(
    program: StepProgram, num_threads: int, fusion: Fusion | None, block_bytes: int
) -> int:
    """What the start-up canary takes beside the weights and the cache: it ends before serving.

    The first rows of the executor that serves (its buffers get memory where they are written), all
    of a second one that runs operations one by one, and copies of both one's logits in float32 and
    of one row in float64, twice. `block_bytes`: of one block of every KV group.
    """
    serving = scratch_bytes(program, CANARY_TOKENS, CANARY_TOKENS, fusion)
    second = scratch_bytes(program, CANARY_TOKENS, CANARY_TOKENS) + CANARY_PLACES * block_bytes
    threads = kept_bytes(program, num_threads, fusion) + kept_bytes(program, 1, None)
    logits = (2 * CANARY_PLACES * 4 + 2 * 8) * program.vocab_size
    return serving + second + threads + logits


def thread_bytes(program: StepProgram, num_threads: int, fusion: Fusion | None) -> int:
    """What the threads keep beside the rows of a step: codes, fused tiles, split attention."""
    num_bytes = CODES_BYTES * num_threads if any(slot.quant.bits for slot in program.slots) else 0
    if fusion is not None:
        split = SPLIT_BYTES if num_threads > 1 else 0  # one thread splits nothing
        num_bytes += (TILE_BYTES + split) * num_threads
    return num_bytes


def expert_bytes(program: StepProgram) -> int:
    """Rows of an expert that a thread copies beside each other, of quantized experts."""
    widest = 0
    for op in program.ops:
        if not isinstance(op, Experts):
            continue
        down, gate_up = program.slot(op.down), program.slot(op.gate_up)
        if not (down.quant.bits or gate_up.quant.bits):
            continue
        x = program.buffers[op.x]
        widths = [buffer_row_bytes(x)]
        if down.quant.bits:
            widths.append(row_bytes(down.cols, down.quant.group_size, residual=x.residual))
        widest = max(widest, *widths, 4 * down.cols)
    return TILE_ROWS * round_up(widest, 4 * PANEL_COLUMNS)
