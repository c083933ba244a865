"""The CPU executor: one call into the kernel library a step.

Owns the model handle (scratch rows, KV pools, threads); weights are shared and outlive it.
Bit-identical: a position's logits depend on its tokens, the packed weights and the instruction
set alone, never on the batch, the budget, the cache or the number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import KernelError
from hearth.core.program import Embed, StepProgram
from hearth.core.spec import KvDType
from hearth.core.step import (
    ExecutorInfo,
    KvConfig,
    LogitEdits,
    StepLimits,
    StepPlan,
    StepResult,
)
from hearth.kernels.cpu import abi
from hearth.kernels.cpu.encode import encode_program
from hearth.kernels.cpu.library import bind_threads, check, load_library, resolve_isa
from hearth.kernels.cpu.weights import CpuWeights
from hearth.kernels.encoder import check_encoder_rows
from hearth.kernels.fuse import ALL_PATTERNS, Fusion, Pattern, fuse

Split: TypeAlias = Literal["auto", "never", "always"]


def _pointer(
    array: NDArray[np.int32] | NDArray[np.float32] | NDArray[np.uint64], dtype: type[np.generic]
) -> int:
    """Address of a C-contiguous array of the type that the ABI expects."""
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise KernelError(f"a plan array is {array.dtype}, not contiguous {dtype.__name__}")
    return int(array.ctypes.data)


def _feature_rows(plan: StepPlan, width: int) -> NDArray[np.uint64] | None:
    """Addresses of the encoder's rows among the tokens, [T], 0 elsewhere; None: there are none."""
    if not len(plan.encoder):
        return None
    check_encoder_rows(plan, width)
    rows, numbers, indices = plan.encoder.T
    bases = np.array([_pointer(f, np.float32) for f in plan.features], np.uint64)
    strides = np.array([f.strides[0] for f in plan.features], np.uint64)
    addresses = np.zeros(len(plan.tokens), np.uint64)
    addresses[rows] = bases[numbers] + indices.astype(np.uint64) * strides[numbers]
    return addresses


class _BestArrays(TypedDict):
    """Fields of StepResult."""

    top_tokens: NDArray[np.int32] | None
    top_logprobs: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class Tiling:
    """How steps are cut into tiles, which changes no bit of any result.

    `patterns`: which operations may be fused. `split`: whether the keys of a sequence are shared
    out among threads. `cuts`: operations that `execute_part` may begin with, fused or not.
    """

    patterns: frozenset[Pattern] = ALL_PATTERNS
    split: Split = "auto"
    cuts: frozenset[int] = frozenset()


DEFAULT_TILING = Tiling()


class CpuExecutor:
    """Runs a program with the C++ kernels; see core.step.Executor."""

    def __init__(
        self,
        program: StepProgram,
        weights: CpuWeights,
        limits: StepLimits,
        kv: KvConfig,
        threads: int,
        isa: str = "auto",
        tiling: Tiling = DEFAULT_TILING,
    ) -> None:
        """Creates scratch memory, KV pools and `threads` − 1 threads.

        `isa`: see `resolve_isa`. Raises ConfigError, KernelError, CapacityError.
        """
        self._library = load_library()
        self._program = program
        self._weights = weights
        self._limits = limits
        self._threads = threads
        self._fusion = fuse(program, threads, tiling.patterns, tiling.cuts)
        encoded = encode_program(program, weights, limits, kv, self._fusion)
        encoded.desc.kv_dtype = abi.KV_CODES[KvDType(kv.dtype)]
        encoded.desc.kv_rotated = kv.rotates_keys
        encoded.desc.num_threads = threads
        chosen = resolve_isa(isa)
        encoded.desc.isa = chosen.encode()
        encoded.desc.attend_split = abi.SPLIT_CODES[tiling.split]
        handle = ctypes.c_void_p()
        check(self._library.hearth_model_create(ctypes.byref(encoded.desc), ctypes.byref(handle)))
        self._handle: ctypes.c_void_p | None = handle
        self._plan = abi.CPlan()
        self._last_plan: StepPlan | None = None
        self._hidden_size = next(
            (program.buffers[op.out].width for op in program.ops if isinstance(op, Embed)), 0
        )
        self._features: NDArray[np.uint64] | None = None  # what the plan points to
        self._result = abi.CResult()
        why = "best that this processor has" if isa == "auto" else "as --isa (HEARTH_ISA) says"
        self._info = ExecutorInfo(
            name="cpu",
            detail=f"{chosen}, {threads} thread{'s' if threads > 1 else ''}",
            reason=f"C++ kernels; {chosen}: {why}",
            bit_identical=True,
        )

    @property
    def program(self) -> StepProgram:
        """The program that it runs."""
        return self._program

    @property
    def weights(self) -> CpuWeights:
        """The packed weights, which another executor may share."""
        return self._weights

    @property
    def fusion(self) -> Fusion:
        """What runs together, and why some operations do not."""
        return self._fusion

    @property
    def info(self) -> ExecutorInfo:
        """Instruction set and threads, and why."""
        return self._info

    def execute(self, plan: StepPlan) -> StepResult:
        """Runs one step. Raises KernelError when the plan leaves its limits."""
        return self.execute_part(plan, 0, -1)

    def execute_part(self, plan: StepPlan, first_op: int, last_op: int) -> StepResult:
        """Runs operations `first_op` … `last_op` − 1 of a step (−1: to the end).

        The result is that of the step once its last operation has run. Raises as `execute` does.
        """
        if self._handle is None:
            raise KernelError("the executor is closed")
        num_rows = len(plan.logit_rows)
        result = StepResult(
            tokens=np.empty(num_rows, np.int32),
            logprobs=np.empty(num_rows, np.float32),
            hashes=np.empty(num_rows, np.uint64) if plan.want_hashes else None,
            logits=np.empty((num_rows, self._program.vocab_size), np.float32)
            if plan.want_logits
            else None,
            **self._best_arrays(num_rows, plan.sampling.num_top),
            ranks=None if plan.sampling.given is None else np.empty(num_rows, np.int32),
        )
        if plan is not self._last_plan:  # the same arrays again, with other numbers in them
            self._last_plan = None
            self._fill_plan(plan)
            self._last_plan = plan
        self._fill_result(result)
        check(
            self._library.hearth_run(
                self._handle,
                first_op,
                last_op,
                ctypes.byref(self._plan),
                ctypes.byref(self._result),
            )
        )
        return result

    def _fill_plan(self, plan: StepPlan) -> None:
        c = self._plan
        self._features = _feature_rows(plan, self._hidden_size)
        c.features = None if self._features is None else self._features.ctypes.data
        c.num_tokens = len(plan.tokens)
        c.num_sequences = len(plan.context)
        c.num_logit_rows = len(plan.logit_rows)
        c.num_copies = len(plan.copies)
        c.num_blocks = len(plan.blocks)
        c.flags = plan.want_hashes * abi.WANT_HASHES + plan.want_logits * abi.WANT_LOGITS
        for name in (
            "tokens",
            "positions",
            "row_start",
            "context",
            "slots",
            "blocks",
            "block_start",
            "first_block",
            "logit_rows",
            "copies",
        ):
            setattr(c, name, _pointer(getattr(plan, name), np.int32))
        sampling = plan.sampling
        for name in ("temperature", "top_p", "min_p"):
            setattr(c, name, _pointer(getattr(sampling, name), np.float32))
        for name in ("top_k", "position", "choice"):
            setattr(c, name, _pointer(getattr(sampling, name), np.int32))
        c.seed = _pointer(sampling.seed, np.uint64)
        c.num_top = sampling.num_top
        wanted = sampling.num_logprobs
        c.num_logprobs = None if wanted is None else _pointer(wanted, np.int32)
        given = sampling.given
        c.given = None if given is None else _pointer(given, np.int32)
        self._fill_edits(sampling.edits)

    def _fill_edits(self, edits: LogitEdits | None) -> None:
        for name in ("repetition", "frequency", "presence", "biases"):
            pointer = None if edits is None else _pointer(getattr(edits, name), np.float32)
            setattr(self._plan, name, pointer)
        for name in ("count_start", "count_tokens", "counts", "bias_start", "bias_tokens"):
            pointer = None if edits is None else _pointer(getattr(edits, name), np.int32)
            setattr(self._plan, name, pointer)

    @staticmethod
    def _best_arrays(num_rows: int, num_top: int) -> _BestArrays:
        """Places for the best tokens, where any row wants them."""
        if num_top == 0:
            return {"top_tokens": None, "top_logprobs": None}
        shape = (num_rows, num_top)
        return {
            "top_tokens": np.full(shape, -1, np.int32),
            "top_logprobs": np.zeros(shape, np.float32),
        }

    def _fill_result(self, result: StepResult) -> None:
        c = self._result
        c.tokens = result.tokens.ctypes.data
        c.logprobs = result.logprobs.ctypes.data
        c.hashes = None if result.hashes is None else result.hashes.ctypes.data
        c.logits = None if result.logits is None else result.logits.ctypes.data
        best, values = result.top_tokens, result.top_logprobs
        c.top_tokens = None if best is None else best.ctypes.data
        c.top_logprobs = None if values is None else values.ctypes.data
        c.ranks = None if result.ranks is None else result.ranks.ctypes.data

    def read_buffer(self, index: int, num_rows: int) -> NDArray[np.float32]:
        """Rows of a program buffer as the last step left them, [num_rows, width]; for tests.

        Of int8 rows, what they stand for.
        """
        out = np.empty((num_rows, self._program.buffers[index].width), np.float32)
        check(self._library.hearth_read_buffer(self._handle, index, num_rows, out.ctypes.data))
        return out

    def write_buffer(self, index: int, rows: NDArray[np.float32]) -> None:
        """Sets the first rows of a buffer of float32, [n, width], for what `execute_part` runs."""
        width = self._program.buffers[index].width
        if rows.ndim != 2 or rows.shape[1] != width:
            raise KernelError(f"rows of shape {list(rows.shape)} do not fit a buffer of {width}")
        values = np.ascontiguousarray(rows, np.float32)
        check(
            self._library.hearth_write_buffer(self._handle, index, len(values), values.ctypes.data)
        )

    def bind(self, cpus: Sequence[int]) -> None:
        """Gives each thread a logical CPU of its own, the caller's while a step runs.

        Raises KernelError where Linux refuses one.
        """
        assert len(cpus) == self._threads
        bind_threads(self._handle, cpus)

    def close(self) -> None:
        """Ends the threads and releases the memory; a second call does nothing."""
        if self._handle is not None:
            self._library.hearth_model_destroy(self._handle)
            self._handle = None

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()
