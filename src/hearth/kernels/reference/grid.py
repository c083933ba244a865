"""A learned grid of positions, stretched over an image: bicubic, in plain torch.

The definition is that of torch's `grid_sample` with mode bicubic (A = −0.75), padding_mode border
and align_corners off.
"""

from __future__ import annotations

import torch

_A = -0.75


def sample_grid(
    table: torch.Tensor, size: int, places: torch.Tensor, grid: tuple[int, int]
) -> torch.Tensor:
    """Rows of a grid of `size` · `size`, [size², width], at patches [2, T] of an image."""
    down, across = (_taps(places[axis], grid[axis], size) for axis in (0, 1))
    rows = torch.zeros(places.shape[1], table.shape[1])
    for y, weight_y in zip(*down, strict=True):
        for x, weight_x in zip(*across, strict=True):
            rows = rows + (weight_y * weight_x)[:, None] * table[y * size + x]
    return rows


def _taps(
    cells: torch.Tensor, num_cells: int, size: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The four neighbours of each place on an axis, and their weights."""
    norm = (cells.float() + 0.5) / num_cells * 2 - 1
    place = ((norm + 1) * size - 1) / 2
    begin = place.floor()
    d = place - begin
    indices = [(begin.long() - 1 + i).clamp(0, size - 1) for i in range(4)]
    return indices, [_far(d + 1), _near(d), _near(1 - d), _far(2 - d)]


def _near(d: torch.Tensor) -> torch.Tensor:
    return ((_A + 2) * d - (_A + 3)) * d * d + 1


def _far(d: torch.Tensor) -> torch.Tensor:
    return ((_A * d - 5 * _A) * d + 8 * _A) * d - 4 * _A
