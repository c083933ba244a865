"""The vision encoder on the CPU: its program through the kernels, a chunk of patches a call.

Owns a model handle of its own (scratch rows, keys and values of the layer at hand, threads); the
weights are those of the executor. Bit-identical: a patch's output depends on its image alone,
never on how many patches went together.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import KernelError
from hearth.core.program import EncoderProgram
from hearth.core.spec import KvDType
from hearth.core.step import KvConfig, PatchSource, StepLimits
from hearth.core.units import ceil_div
from hearth.kernels.cpu import abi
from hearth.kernels.cpu.encode import encode_program
from hearth.kernels.cpu.library import bind_threads, check, load_library, resolve_isa
from hearth.kernels.cpu.weights import CpuWeights
from hearth.kernels.encoder import (
    EncoderChunk,
    EncoderWalk,
    check_grid,
    ordered_patches,
    ordered_places,
    token_order,
)
from hearth.kernels.fuse import ALL_PATTERNS, Pattern, fuse
from hearth.kernels.packing import ENCODER_BLOCK_ROWS, ENCODER_CHUNK_ROWS


class CpuEncoder:
    """See core.step.ImageEncoder."""

    def __init__(
        self,
        program: EncoderProgram,
        weights: CpuWeights,
        max_patches: int,
        threads: int,
        isa: str = "auto",
        kv_dtype: KvDType = KvDType.BFLOAT16,
        patterns: Iterable[Pattern] = ALL_PATTERNS,
    ) -> None:
        """Raises ConfigError, KernelError, CapacityError."""
        self._library = load_library()
        self._program = program
        self._weights = weights  # must outlive the handle
        self._max_patches = max_patches
        self._threads = threads
        num_blocks = ceil_div(max_patches, ENCODER_BLOCK_ROWS)
        limits = StepLimits(ENCODER_CHUNK_ROWS, 1, 1, num_blocks * ENCODER_BLOCK_ROWS)
        groups = len(program.program.kv_groups)
        kv = KvConfig(ENCODER_BLOCK_ROWS, (num_blocks,) * groups, str(kv_dtype))
        encoded = encode_program(
            program.program,
            weights,
            limits,
            kv,
            fuse(program.program, threads, patterns, program.phases),
        )
        desc = encoded.desc
        desc.kv_dtype = abi.KV_CODES[kv_dtype]
        desc.max_image_rows, desc.merge_rows = max_patches, program.merge_rows
        desc.num_threads = threads
        desc.isa = resolve_isa(isa).encode()
        handle = ctypes.c_void_p()
        check(self._library.hearth_model_create(ctypes.byref(desc), ctypes.byref(handle)))
        self._handle: ctypes.c_void_p | None = handle
        self._image: _Image | None = None

    @property
    def max_patches(self) -> int:
        """Of one image."""
        return self._max_patches

    @property
    def output_size(self) -> int:
        """See `ImageEncoder`."""
        return self._program.output_size

    def start(self, patches: PatchSource, grid_height: int, grid_width: int) -> None:
        """See `ImageEncoder`. Raises KernelError."""
        check_grid(self._program, grid_height, grid_width, self._max_patches)
        self._image = _Image(self._program, patches, grid_height, grid_width)

    def advance(self, num_rows: int) -> bool:
        """See `ImageEncoder`."""
        image = self._image
        if self._handle is None or image is None:
            raise KernelError("the encoder has no image")
        if not image.walk.is_done:
            chunk = image.walk.next_chunk(min(num_rows, ENCODER_CHUNK_ROWS))
            plan, result = image.plan_of(chunk)
            check(
                self._library.hearth_run(
                    self._handle,
                    chunk.first_op,
                    chunk.last_op,
                    ctypes.byref(plan),
                    ctypes.byref(result),
                )
            )
        return image.walk.is_done

    def features(self) -> NDArray[np.float32]:
        """See `ImageEncoder`."""
        assert self._image is not None, "there is no image"
        assert self._image.walk.is_done, "the image is not done"
        return self._image.features()

    def bind(self, cpus: Sequence[int]) -> None:
        """See `CpuExecutor.bind`."""
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


class _Image:
    """An image on its way, and the arrays of the calls that take it through."""

    def __init__(
        self, program: EncoderProgram, patches: PatchSource, grid_height: int, grid_width: int
    ) -> None:
        num_rows = grid_height * grid_width
        self.walk = EncoderWalk(program, num_rows)
        self._output = np.zeros((num_rows // program.merge_rows, program.output_size), np.float32)
        self._patches = patches
        self._grid = (grid_height, grid_width)
        self._num_rows = num_rows
        self._num_groups = len(program.program.kv_groups)
        self._merge_rows = program.merge_rows
        self._order = token_order(program, grid_height, grid_width)
        self._places = ordered_places(program, self._order, grid_height, grid_width)
        self._none = np.zeros((ENCODER_CHUNK_ROWS, program.patch_values), np.float32)
        self._blocks = np.arange(ceil_div(num_rows, ENCODER_BLOCK_ROWS), dtype=np.int32)
        self._arrays: tuple[NDArray[np.int32] | NDArray[np.float32], ...] = ()

    def plan_of(self, chunk: EncoderChunk) -> tuple[abi.CPlan, abi.CResult]:
        """What a call needs; valid until the next one."""
        first, count = chunk.first_row, chunk.num_rows
        positions = np.zeros((3, count), np.int32)
        positions[1:] = self._places[:, first : first + count]
        patches = self._none
        if chunk.first_op == 0:
            patches = ordered_patches(self._patches, self._order, self._merge_rows, first, count)
        tokens, groups = np.zeros(count, np.int32), self._num_groups
        slots = np.tile(np.arange(first, first + count, dtype=np.int32), groups)
        ends = np.array([0, count, first, *[0, len(self._blocks)] * groups], np.int32)
        windows = self._order.window_start
        self._arrays = (positions, patches, tokens, slots, ends)
        plan = abi.CPlan(
            num_tokens=count,
            num_sequences=1,
            num_blocks=len(self._blocks),
            tokens=tokens.ctypes.data,
            positions=positions.ctypes.data,
            row_start=ends.ctypes.data,
            context=ends[2:].ctypes.data,
            slots=slots.ctypes.data,
            blocks=self._blocks.ctypes.data,
            block_start=ends[3:].ctypes.data,
            first_block=tokens.ctypes.data,
            image_rows=self._num_rows,
            grid_height=self._grid[0],
            grid_width=self._grid[1],
            patches=patches.ctypes.data,
            num_windows=0 if windows is None else len(windows) - 1,
            window_start=None if windows is None else windows.ctypes.data,
        )
        return plan, abi.CResult(features=self._output.ctypes.data)

    def features(self) -> NDArray[np.float32]:
        """The output, in the image's own order of tokens."""
        found = np.empty_like(self._output)
        found[self._order.tokens] = self._output
        return found
