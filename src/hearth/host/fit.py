"""The memory plan: bytes per consumer, and what they allow for context and KV cache.

Pure arithmetic on a program, settings and the host's facts; the CLI, the engine and Kubernetes
requests use the same. What does not fit is refused here, before anything is loaded.

  available ─ weights ─ scratch ─ runtime = free;  KV cache ≤ free / 2 unless set
  (the other half is for the page cache, other programs and what the plan does not know)

In one file, though a little long: items, limits and what is left follow from each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from hearth.core.blocks import max_blocks_held
from hearth.core.config import Choice
from hearth.core.errors import CapacityError, ConfigError
from hearth.core.memory import MemoryItem, MemoryPlan
from hearth.core.program import EncoderProgram, KvGroupSpec, StepProgram
from hearth.core.spec import DType, KvDType, float_kv
from hearth.core.step import KvConfig, StepLimits
from hearth.core.units import MIB, ceil_div, format_bytes, format_count, round_up
from hearth.host.memory import HostMemory
from hearth.host.scratch import (
    IMAGE_QUERIES,
    canary_bytes,
    encoder_bytes,
    kept_bytes,
    scratch_bytes,
    thread_bytes,
)
from hearth.kernels.fuse import Fusion
from hearth.kernels.packing import ENCODER_BLOCK_ROWS, arena_bytes, kv_block_bytes

# Resident memory of both processes before the first request, the model's own aside. (Measured on
# x86-64, Python 3.11: 57 MiB the front end with its HTTP stack, 30 MiB the engine.)
RUNTIME_BYTES = 100 * MIB
LEAST_MODEL_LEN = 16
# Logits rows of a step beside one a sequence: prompts are scored so many tokens a step, or fewer
# (a prefill of 64 rows is bound by arithmetic, not by reading weights), and so many drafted.
EXTRA_ROWS = 64
# Where pixels are one part in so many of what is needed, or more, settings that bound them help.
PIXELS_SHARE = 4


@dataclass(frozen=True, slots=True)
class KvShare:
    """What part of what is free the KV cache may take, unless its size is set."""

    parts: int
    of: int
    words: str  # such as "half"

    def share(self, free_bytes: int) -> int:
        """Bytes that it may take."""
        return free_bytes * self.parts // self.of

    def needed(self, kv_bytes: int) -> int:
        """Bytes that must be free so that it may take so many."""
        return ceil_div(kv_bytes * self.of, self.parts)


HALF = KvShare(1, 2, "half")
# A GPU that a server has to itself; the rest is for what the plan does not know.
MOST_OF_A_GPU = KvShare(9, 10, "nine tenths")
BlockBytes: TypeAlias = Callable[[KvGroupSpec, int, KvDType], int]


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """What images need: an encoder's program, the largest image, outputs that are kept.

    `pixel_bytes`: of the images of all requests, and of those that are being decoded.
    """

    encoder: EncoderProgram
    max_patches: int
    cache_bytes: int
    pixel_bytes: int


@dataclass(frozen=True, slots=True)
class FitRequest:
    """What is to fit. `max_model_len` and `kv_memory_bytes` None: chosen here.

    `kv_dtype`: of keys and values, None: `dtype`; `smaller_kv`: what they could be as well, for
    hints. `fixed`: what is needed whatever the context; None: weights and buffers of the program,
    but for the buffers that `fusion` keeps within tiles (None: operations run one by one, unsplit).
    `block_bytes` and `kv_share`: of a device with a layout of its own.
    """

    program: StepProgram
    dtype: DType
    max_position_embeddings: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int | None = None
    kv_memory_bytes: int | None = None
    num_threads: int = 1
    fixed: tuple[MemoryItem, ...] | None = None
    fusion: Fusion | None = None
    images: ImageRequest | None = None
    kv_dtype: KvDType | None = None
    smaller_kv: tuple[KvDType, ...] = ()
    block_bytes: BlockBytes = kv_block_bytes
    kv_share: KvShare = HALF

    @property
    def stored_kv(self) -> KvDType:
        """How keys and values are stored."""
        return self.kv_dtype or float_kv(self.dtype)


@dataclass(frozen=True, slots=True)
class Fit:
    """A plan that fits, and the sizes that follow from it."""

    plan: MemoryPlan
    limits: StepLimits
    kv: KvConfig
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class _KvBudget:
    """Bytes that the KV cache may take, and why."""

    num_bytes: int
    reason: str
    free_bytes: int  # what could be asked for at most
    fewer_images: str  # for hints, see fewer_images


def fit(request: FitRequest, memory: HostMemory) -> Fit:
    """Plans the memory of an engine.

    Raises ConfigError (`max_model_len` above the model's own) and CapacityError (weights, or the
    KV cache of a single sequence, do not fit; the message gives what would).
    """
    fixed = fixed_items(request) if request.fixed is None else request.fixed
    budget = _kv_budget(request, fixed, memory)
    max_model_len = _resolve_model_len(request, budget)
    num_blocks = _num_blocks(request, budget, max_model_len.num_tokens)
    kv_bytes = sum(n * b for n, b in zip(num_blocks, _block_bytes(request)))
    kv_item = MemoryItem("KV cache", kv_bytes, _describe_kv(request, num_blocks, budget))
    plan = MemoryPlan((*fixed, kv_item), memory.available_bytes, num_blocks)
    sequences = min(request.max_num_seqs, request.max_num_batched_tokens)
    rows = _logit_rows(request)
    limits = StepLimits(request.max_num_batched_tokens, sequences, rows, max_model_len.num_tokens)
    choices = (
        Choice("max_model_len", format_count(limits.max_model_len), max_model_len.reason),
        Choice("kv_cache", format_bytes(kv_bytes), kv_item.reason),
    )
    return Fit(plan, limits, KvConfig(request.block_size, num_blocks, request.stored_kv), choices)


def needed_bytes(request: FitRequest, num_tokens: int) -> int:
    """What must be free for a context of `num_tokens`.

    The KV cache is as large as it was set, or counts as often as its share of what is left asks.
    """
    fixed = fixed_items(request) if request.fixed is None else request.fixed
    kv = request.kv_memory_bytes or request.kv_share.needed(sequence_bytes(request, num_tokens))
    return sum(item.num_bytes for item in fixed) + kv


def fewer_images(request: FitRequest) -> str:
    """Offers fewer or smaller images, for a hint, where their pixels take a large share; or ""."""
    if request.images is None:
        return ""
    items = fixed_items(request) if request.fixed is None else request.fixed
    num_bytes = request.images.pixel_bytes
    if PIXELS_SHARE * num_bytes < sum(item.num_bytes for item in items):
        return ""
    return f", or lower --limit-images or --max-pixels (pixels take {format_bytes(num_bytes)})"


def max_logit_rows(max_num_seqs: int, max_num_batched_tokens: int) -> int:
    """Logits rows of a step: one a sequence, and those of drafts and of prompts to be scored."""
    return min(max_num_seqs + EXTRA_ROWS, max_num_batched_tokens)


def _logit_rows(request: FitRequest) -> int:
    return max_logit_rows(request.max_num_seqs, request.max_num_batched_tokens)


def fixed_items(request: FitRequest) -> tuple[MemoryItem, ...]:
    """What is needed whatever the context."""
    program = request.program
    weights = arena_bytes(program.slots)
    stored = _stored_as(request)
    num_parameters = sum(slot.total_rows * max(1, slot.cols) for slot in program.slots)
    tokens = request.max_num_batched_tokens
    rows = _logit_rows(request)
    threads, fusion = request.num_threads, request.fusion
    scratch = scratch_bytes(program, tokens, rows, fusion) + kept_bytes(program, threads, fusion)
    canary = canary_bytes(program, threads, fusion, sum(_block_bytes(request))) - scratch
    return (
        MemoryItem("weights", weights, f"{format_count(num_parameters)} parameters as {stored}"),
        MemoryItem(
            "scratch",
            scratch,
            f"buffers of {format_count(tokens)} tokens, logits of {rows} rows ({EXTRA_ROWS} of "
            f"them for drafts and scored prompts), sampling in {threads} threads",
        ),
        MemoryItem("runtime", RUNTIME_BYTES, "two Python processes and their libraries"),
        *([MemoryItem("canary", canary, "more than scratch, at the start")] if canary > 0 else []),
        *_image_items(request),
    )


def _image_items(request: FitRequest) -> tuple[MemoryItem, ...]:
    """What images need beside the encoder's weights; nothing for a model that takes none."""
    images = request.images
    if images is None:
        return ()
    patches, program = format_count(images.max_patches), images.encoder.program
    blocks = ceil_div(images.max_patches, ENCODER_BLOCK_ROWS)
    keys = blocks * sum(
        kv_block_bytes(group, ENCODER_BLOCK_ROWS, float_kv(request.dtype))
        for group in program.kv_groups
    )
    threads = request.num_threads
    is_fused = request.fusion is not None and bool(request.fusion.groups)
    rows = encoder_bytes(images.encoder, images.max_patches, threads if is_fused else 0)
    attention = threads * IMAGE_QUERIES * (2 * round_up(program.kv_groups[0].head_dim, 16) + 68) * 4
    kept = thread_bytes(program, threads, request.fusion)
    output = images.max_patches // images.encoder.merge_rows * images.encoder.output_size * 4
    return (
        MemoryItem(
            "encoder",
            keys + rows + kept + attention + output,
            f"one image of {patches} patches",
        ),
        MemoryItem("images", images.cache_bytes, "--image-cache-bytes, outputs of the encoder"),
        MemoryItem(
            "pixels",
            images.pixel_bytes,
            "of requests that wait or run (--limit-images, --max-pixels), and decoding",
        ),
    )


def _stored_as(request: FitRequest) -> str:
    """The precision of the weights, such as "bfloat16" or "int4 and int8"."""
    codes = {s.quant.storage for s in request.program.slots if s.quant.bits}
    return " and ".join(sorted(codes)) or str(request.dtype)


def _kv_budget(request: FitRequest, fixed: tuple[MemoryItem, ...], memory: HostMemory) -> _KvBudget:
    """What the KV cache may take. Raises CapacityError when nothing is left for it."""
    needed = sum(item.num_bytes for item in fixed)
    free = memory.available_bytes - needed
    images = fewer_images(request)
    if free <= 0:
        parts = ", ".join(f"{item.name} {format_bytes(item.num_bytes)}" for item in fixed)
        smaller = " (--dtype bfloat16 halves the weights)" * (request.dtype is DType.FLOAT32)
        raise CapacityError(
            f"the model needs {format_bytes(needed)} as {request.dtype} ({parts}) before any KV "
            f"cache; {memory.describe()}",
            hint=f"free memory or serve a smaller model{smaller}{images}",
        )
    asked = request.kv_memory_bytes
    if asked is None:
        reason = f"{request.kv_share.words} of the {format_bytes(free)} that are left"
        return _KvBudget(request.kv_share.share(free), reason, free, images)
    if asked > free:
        raise CapacityError(
            f"--kv-cache-memory-bytes is {format_count(asked)} ({format_bytes(asked)}), "
            f"{format_bytes(free)} are free after weights and scratch; {memory.describe()}",
            hint=f"set --kv-cache-memory-bytes ≤ {free}{images}",
        )
    return _KvBudget(asked, "--kv-cache-memory-bytes", free, images)


@dataclass(frozen=True, slots=True)
class _ModelLen:
    num_tokens: int
    reason: str


def _resolve_model_len(request: FitRequest, budget: _KvBudget) -> _ModelLen:
    """The context: as asked, else the model's own, else what one sequence may have."""
    most = request.max_position_embeddings
    asked = request.max_model_len
    if asked is not None and asked > most:
        raise ConfigError(
            f"--max-model-len is {format_count(asked)}, the model's max_position_embeddings is "
            f"{format_count(most)}",
            hint=f"set --max-model-len ≤ {most}",
        )
    wanted = most if asked is None else asked
    needed = sequence_bytes(request, wanted)
    if needed <= budget.num_bytes:
        reason = "the model's max_position_embeddings" if asked is None else "--max-model-len"
        return _ModelLen(wanted, reason)
    fitting = longest_fitting(request, budget.num_bytes, wanted)
    smaller = _smaller_cache(request, budget, wanted)
    shortage = (
        f"the KV cache of one sequence of {format_count(wanted)} tokens needs "
        f"{format_bytes(needed)}, {format_bytes(budget.num_bytes)} may be used for it "
        f"({budget.reason})"
    )
    if fitting < min(wanted, LEAST_MODEL_LEN):
        raise CapacityError(shortage, hint=f"free memory{_more_cache(needed, budget)}{smaller}")
    if asked is not None:
        hint = f"set --max-model-len ≤ {format_count(fitting)}{_more_cache(needed, budget)}"
        raise CapacityError(shortage, hint=f"{hint}{smaller}")
    return _ModelLen(fitting, f"reduced from the model's {format_count(most)}: {shortage}{smaller}")


def _more_cache(needed_bytes: int, budget: _KvBudget) -> str:
    """Offers a larger cache where there is memory for it, else what takes much of the memory."""
    if needed_bytes > budget.free_bytes:
        return budget.fewer_images
    return f", or set --kv-cache-memory-bytes ≥ {needed_bytes}"


def _smaller_cache(request: FitRequest, budget: _KvBudget, wanted: int) -> str:
    """What smaller keys and values would allow, as an addition to a sentence; or ""."""
    shown = [
        f"--kv-cache-dtype {dtype} allows {format_count(num_tokens)} tokens"
        for dtype in request.smaller_kv
        if (
            num_tokens := longest_fitting(
                replace(request, kv_dtype=dtype), budget.num_bytes, wanted
            )
        )
    ]
    return f"; {', '.join(shown)} (docs/kv-cache.md: what it loses)" if shown else ""


def less_context(request: FitRequest, memory: HostMemory, wanted: int) -> str:
    """What fits of a context of `wanted` tokens that does not, for a hint; or "".

    As `fit` would have it: shorter, or with smaller keys and values.
    """
    fixed = fixed_items(request) if request.fixed is None else request.fixed
    free = memory.available_bytes - sum(item.num_bytes for item in fixed)
    if free <= 0:
        return ""
    asked = request.kv_memory_bytes
    num_bytes = request.kv_share.share(free) if asked is None else min(asked, free)
    budget = _KvBudget(num_bytes, "", free, "")
    lower = "" if asked is None else f", set --kv-cache-memory-bytes ≤ {free}"
    fitting = min(wanted, longest_fitting(request, num_bytes, wanted))
    if LEAST_MODEL_LEN <= fitting < wanted:
        lower += f", set --max-model-len ≤ {format_count(fitting)}"
    return f"{lower}{_smaller_cache(request, budget, wanted)}"


def token_bytes(request: FitRequest) -> float:
    """Bytes of one token's keys and values in all layers, scales included."""
    return sum(_block_bytes(request)) / request.block_size


def longest_fitting(request: FitRequest, num_bytes: int, most: int) -> int:
    """The longest context (≤ `most`) of which one sequence's KV cache fits; 0 if none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if sequence_bytes(request, middle) <= num_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def _block_bytes(request: FitRequest) -> list[int]:
    """Bytes of one block of each group."""
    groups = request.program.kv_groups
    return [request.block_bytes(group, request.block_size, request.stored_kv) for group in groups]


def _sequence_blocks(request: FitRequest, num_tokens: int) -> list[int]:
    """Blocks that one sequence of this length holds at most, per group."""
    step_tokens = request.max_num_batched_tokens
    return [
        max_blocks_held(num_tokens, group.window, step_tokens, request.block_size)
        for group in request.program.kv_groups
    ]


def sequence_bytes(request: FitRequest, num_tokens: int) -> int:
    """KV cache of one sequence of so many tokens, in whole blocks."""
    blocks = _sequence_blocks(request, num_tokens)
    return sum(n * b for n, b in zip(blocks, _block_bytes(request)))


def _num_blocks(request: FitRequest, budget: _KvBudget, max_model_len: int) -> tuple[int, ...]:
    """Blocks per group: for max_num_seqs full sequences, or in that proportion what fits.

    Never less than one sequence needs, which has been checked against the budget.
    """
    single = _sequence_blocks(request, max_model_len)
    wanted = [request.max_num_seqs * blocks for blocks in single]
    block_bytes = _block_bytes(request)
    whole = max(wanted, default=1)

    def at(scale: int) -> tuple[int, ...]:
        return tuple(max(one, ceil_div(all_ * scale, whole)) for one, all_ in zip(single, wanted))

    low, high = 0, whole
    while low < high:
        middle = (low + high + 1) // 2
        if sum(n * b for n, b in zip(at(middle), block_bytes)) <= budget.num_bytes:
            low = middle
        else:
            high = middle - 1
    return at(low)


def _describe_kv(request: FitRequest, num_blocks: tuple[int, ...], budget: _KvBudget) -> str:
    """`1,024 blocks of 32 tokens (2.00 MiB each), of 1.90 GiB: half of …`."""
    blocks = " + ".join(
        f"{format_count(n)} blocks of {request.block_size} tokens × {format_bytes(size)}"
        for n, size in zip(num_blocks, _block_bytes(request))
    )
    return f"{blocks}; at most {format_bytes(budget.num_bytes)}: {budget.reason}"
