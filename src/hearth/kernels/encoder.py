"""How an image goes through a vision encoder: the order of its patches, and what comes next.

`merge` · `merge` patches beside each other follow each other, row by row within such a block, and
blocks follow each other row by row. All patches go through a phase before the next one begins;
within a phase some at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import KernelError
from hearth.core.program import EncoderProgram
from hearth.core.step import PatchSource, StepPlan


def patch_places(grid_height: int, grid_width: int, merge: int) -> NDArray[np.int32]:
    """Row and column of each patch, in the order of patches, [2, grid_height · grid_width]."""
    blocks = (grid_height // merge, merge, grid_width // merge, merge)
    down, across = np.indices((grid_height, grid_width), np.int32)
    ordered = (places.reshape(blocks).transpose(0, 2, 1, 3).ravel() for places in (down, across))
    return np.stack(list(ordered))


@dataclass(frozen=True, slots=True)
class TokenOrder:
    """The order in which an encoder takes the tokens of an image: window by window.

    `tokens`: [n], the natural number of each; `window_start`: patches at which windows begin, and
    all of them at the end; None where there are no windows.
    """

    tokens: NDArray[np.int64]
    window_start: NDArray[np.int32] | None


def token_order(program: EncoderProgram, grid_height: int, grid_width: int) -> TokenOrder:
    """Of an image in patches."""
    merge, side = math.isqrt(program.merge_rows), program.window_tokens
    height, width = grid_height // merge, grid_width // merge
    numbers = np.arange(height * width).reshape(height, width)
    if not side:
        return TokenOrder(numbers.ravel(), None)
    windows = [
        numbers[top : top + side, left : left + side].ravel()
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]
    ends = np.cumsum([0, *map(len, windows)]) * program.merge_rows
    return TokenOrder(np.concatenate(windows), ends.astype(np.int32))


def ordered_places(
    program: EncoderProgram, order: TokenOrder, grid_height: int, grid_width: int
) -> NDArray[np.int32]:
    """Row and column of each patch in the encoder's order, [2, patches]."""
    places = patch_places(grid_height, grid_width, math.isqrt(program.merge_rows))
    by_token = places.reshape(2, -1, program.merge_rows)
    return np.ascontiguousarray(by_token[:, order.tokens].reshape(2, -1))


def ordered_patches(
    patches: PatchSource, order: TokenOrder, merge_rows: int, first: int, count: int
) -> NDArray[np.float32]:
    """Patches `first` … of the encoder's order, from a source in the natural one."""
    if order.window_start is None:
        return patches(first, count)
    tokens = order.tokens[first // merge_rows : (first + count) // merge_rows]
    breaks = np.flatnonzero(np.diff(tokens) != 1) + 1
    runs = np.split(tokens, breaks)  # of tokens that are neighbours
    parts = [patches(int(run[0]) * merge_rows, len(run) * merge_rows) for run in runs]
    return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class EncoderChunk:
    """Operations first_op … last_op − 1 on patches first_row … first_row + num_rows − 1."""

    first_op: int
    last_op: int
    first_row: int
    num_rows: int


class EncoderWalk:
    """The way of one image through the phases."""

    def __init__(self, program: EncoderProgram, num_rows: int) -> None:
        self._program = program
        self._num_rows = num_rows
        self._phase = 0
        self._row = 0

    @property
    def is_done(self) -> bool:
        """Whether all patches went through all phases."""
        return self._phase + 1 >= len(self._program.phases)

    def next_chunk(self, most_rows: int) -> EncoderChunk:
        """The next patches, `most_rows` or fewer, in whole merged rows; they count as computed."""
        merge, phases = self._program.merge_rows, self._program.phases
        num_rows = min(max(merge, most_rows // merge * merge), self._num_rows - self._row)
        chunk = EncoderChunk(phases[self._phase], phases[self._phase + 1], self._row, num_rows)
        self._row += num_rows
        if self._row == self._num_rows:
            self._phase, self._row = self._phase + 1, 0
        return chunk


def check_grid(program: EncoderProgram, grid_height: int, grid_width: int, max_patches: int) -> int:
    """The number of patches of an image. Raises KernelError where it is none for this encoder."""
    merge = math.isqrt(program.merge_rows)
    num_patches = grid_height * grid_width
    if grid_height < 1 or grid_width < 1 or grid_height % merge or grid_width % merge:
        raise KernelError(
            f"an image of {grid_height} × {grid_width} patches: no multiples of {merge}"
        )
    if num_patches > max_patches:
        raise KernelError(
            f"an image of {num_patches:,} patches; the encoder has room for {max_patches:,}"
        )
    return num_patches


def check_encoder_rows(plan: StepPlan, width: int) -> None:
    """Rows of a plan that show an image exist and have `width` values. Raises KernelError."""
    rows, numbers, indices = plan.encoder.T
    sizes = np.array([len(f) for f in plan.features], np.int32)
    is_sound = all(f.ndim == 2 and f.shape[1] == width for f in plan.features)
    for values, end in ((rows, len(plan.tokens)), (numbers, len(sizes))):
        is_sound = is_sound and bool(((values >= 0) & (values < end)).all())
    if not is_sound or not ((indices >= 0) & (indices < sizes[numbers])).all():
        raise KernelError("an encoder row lies outside of the plan")
