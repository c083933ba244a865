"""The factor of the inverse Hessian by which GPTQ passes errors on.

With H = M·Mᵀ, M upper triangular, H⁻¹ = UᵀU has the factor U = M⁻¹. M is the Cholesky factor of H
read from its last row and column backwards, so that neither H⁻¹ nor a second factor is computed.
Both steps are one recursion on halves, nearly all of it matrix products. (Processor time for 4,096
columns in float32 on an EPYC 9005: MKL's potri alone takes 4.0 s, its potrf 0.5 s.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from hearth.quant.calibrated.parts import one_thread

_LEAF = 256  # columns that LAPACK takes as they are
_DOUBLE_COLS = 4096  # up to this width factors are computed in float64
_FIRST_DAMPING = 0.01  # of the mean of the diagonal, as in the paper
_MOST_DAMPING = 1e4


def inverse_factor(gram: Tensor, diagonal: Tensor, permutation: Tensor) -> tuple[Tensor, float]:
    """The upper Cholesky factor of the inverse, float32, and the damping that it took.

    Of `gram` [cols, cols] with another `diagonal` [cols], columns in the order of `permutation`.
    Above 4,096 columns float64 comes where float32 fails. The damping grows tenfold until a factor
    exists: a Gram matrix of few or of constant inputs has no inverse.
    """
    backwards = permutation.flip(0)
    ordered, mean = diagonal[backwards], float(diagonal.mean(dtype=torch.float64))
    kinds = (torch.float32, torch.float64) if len(gram) > _DOUBLE_COLS else (torch.float64,)
    damping = _FIRST_DAMPING
    while damping <= _MOST_DAMPING:
        for kind in kinds:
            matrix = gram[backwards].to(kind)
            matrix = matrix.index_select(1, backwards)
            matrix.diagonal().copy_(ordered.to(kind) + damping * mean)
            if _invert_factor(matrix):
                return matrix.float().flip(0, 1), damping
        damping *= 10
    return torch.diag(1 / (ordered.flip(0) + damping * mean).sqrt()), damping


def _invert_factor(matrix: Tensor) -> bool:
    """Puts the inverse of a matrix's lower Cholesky factor in its place; False: there is none."""
    size = len(matrix)
    if size <= _LEAF:
        with one_thread():
            return _invert_leaf(matrix)
    half = size // 2
    first, below, last = matrix[:half, :half], matrix[half:, :half], matrix[half:, half:]
    if not _invert_factor(first):
        return False
    factor = below @ first.T
    last.addmm_(factor, factor.T, alpha=-1)
    if not _invert_factor(last):
        return False
    torch.mm(last, factor @ first, out=factor)
    below.copy_(factor.neg_())
    matrix[:half, half:] = 0
    return True


def _invert_leaf(matrix: Tensor) -> bool:
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        return False
    one = torch.eye(len(matrix), dtype=matrix.dtype)
    matrix.copy_(torch.linalg.solve_triangular(lower, one, upper=False))
    return bool(torch.isfinite(matrix).all())
