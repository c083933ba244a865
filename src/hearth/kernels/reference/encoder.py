"""The vision encoder in torch: one image in one pass, however little is asked for at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from hearth.core.errors import KernelError
from hearth.core.program import EncoderProgram
from hearth.core.step import PatchSource
from hearth.kernels.encoder import check_grid, ordered_places, token_order
from hearth.kernels.reference.forward import WeightLookup, forward
from hearth.kernels.reference.kv import PassKv, SequenceRows, StepTensors


class ReferenceEncoder:
    """See core.step.ImageEncoder."""

    def __init__(self, program: EncoderProgram, weights: WeightLookup, max_patches: int) -> None:
        self._program = program
        self._weights = weights
        self._max_patches = max_patches
        self._run: Callable[[], torch.Tensor] | None = None
        self._features: NDArray[np.float32] | None = None

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
        count = check_grid(self._program, grid_height, grid_width, self._max_patches)
        grid = (grid_height, grid_width)
        self._features = None
        self._run = lambda: self.encode(torch.from_numpy(np.array(patches(0, count))), grid)

    def encode(self, patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """The features of patches [n, values] of an image; differentiable."""
        program, count = self._program, patches.shape[0]
        order = token_order(program, *grid)
        tokens = torch.from_numpy(order.tokens)
        places = torch.from_numpy(ordered_places(program, order, *grid).astype(np.int64))
        by_token = patches.reshape(-1, program.merge_rows, patches.shape[-1])
        windows = None
        if order.window_start is not None:
            sizes = torch.from_numpy(np.diff(order.window_start).astype(np.int64))
            windows = torch.repeat_interleave(sizes)
        step = StepTensors(
            tokens=torch.zeros(count, dtype=torch.long),
            positions=torch.cat((torch.zeros(1, count, dtype=torch.long), places)),
            sequences=(SequenceRows(0, count, 0),),
            logit_rows=torch.zeros(0, dtype=torch.long),
            patches=by_token[tokens].flatten(0, 1),
            grid=grid,
            windows=windows,
        )
        output = forward(program.program, self._weights, step, PassKv())
        return torch.empty_like(output).index_copy(0, tokens, output)

    def advance(self, num_rows: int) -> bool:
        """See `ImageEncoder`: all of it, at once."""
        if self._run is None:
            raise KernelError("the encoder has no image")
        if self._features is None:
            with torch.no_grad():
                self._features = self._run().numpy()
        return True

    def features(self) -> NDArray[np.float32]:
        """See `ImageEncoder`."""
        assert self._features is not None, "the image is not done"
        return self._features

    def close(self) -> None:
        """Forgets the image."""
        self._run = self._features = None
