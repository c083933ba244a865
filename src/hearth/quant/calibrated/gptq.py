"""GPTQ (Frantar et al. 2022, arXiv 2210.17323).

Each column's rounding error is made up for by the columns that are still to come, as the Hessian of
the layer's squared output error says.
The Hessian of a linear layer is XᵀX, the Gram matrix of what it reads. Groups are always
neighbouring columns, whatever the order in which columns are visited, so that no `g_idx` is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hearth.quant.calibrated.fit import Form, Grid, codes_of, search, values_of

ORDERS = ("columns", "natural")
_BLOCK = 128  # columns between two products with all columns to come
_DOUBLE_COLS = 4096  # up to this width factors are computed in float64
_FIRST_DAMPING = 0.01  # of the mean of the diagonal, as in the paper
_MOST_DAMPING = 1e4


@dataclass(frozen=True, slots=True)
class Coded:
    """A matrix as codes [rows, cols] uint8, and its grid."""

    codes: Tensor
    grid: Grid
    form: Form
    damping: float = 0.0  # of the mean of the diagonal

    @property
    def values(self) -> Tensor:
        """What the codes stand for, [rows, cols] float32."""
        return values_of(self.codes, self.grid, self.form)


def output_error(difference: Tensor, gram: Tensor) -> float:
    """‖difference · Xᵀ‖², the squared error of the outputs."""
    return float(((difference @ gram) * difference).sum(dtype=torch.float64))


def gptq(weight: Tensor, gram: Tensor, form: Form, order: str = "columns") -> Coded:
    """Codes of `weight` [rows, cols] for inputs with `gram` [cols, cols] = XᵀX, both float32.

    `order`: "columns" takes those of the largest inputs first, "natural" as they stand. A group's
    scale and zero point are searched when its first column comes, on the weights as they are by
    then. Columns without any input are rounded to the nearest. (Squared output error left in the
    small text model, groups of 64, by text that was not calibrated on, in parts of 10,000: rounding
    20.0, natural 5.35, by groups 4.81, by columns 4.53.)
    """
    gram = prepared(gram)
    permutation = _permutation(gram.diagonal(), order)
    factor, damping = _factor(gram[permutation][:, permutation])
    work = weight[:, permutation].clone()
    visit = _Visit(weight, gram.diagonal(), permutation, form)
    for begin in range(0, weight.shape[1], _BLOCK):
        end = min(begin + _BLOCK, weight.shape[1])
        errors = visit.block(work, factor, begin, end)
        work[:, end:] -= errors @ factor[begin:end, end:]
    return Coded(visit.codes, visit.grid, form, damping)


class _Visit:
    """Codes as far as columns have been visited."""

    def __init__(self, weight: Tensor, diagonal: Tensor, permutation: Tensor, form: Form) -> None:
        rows, cols = weight.shape
        groups = cols // form.group_size
        self.codes = torch.zeros(rows, cols, dtype=torch.uint8)
        self.grid = Grid(torch.zeros(rows, groups), torch.zeros(rows, groups))
        self._form, self._permutation = form, permutation
        self._group_of = (permutation // form.group_size).tolist()
        self._places = torch.argsort(permutation).reshape(groups, form.group_size)
        self._importance = diagonal.reshape(groups, form.group_size)
        self._begun = [False] * groups

    def block(self, work: Tensor, factor: Tensor, begin: int, end: int) -> Tensor:
        """Codes of the columns at `begin` … `end` − 1; what they leave to the ones behind."""
        for group in dict.fromkeys(self._group_of[begin:end]):
            if not self._begun[group]:
                self._begin(work, group)
        block, errors = work[:, begin:end].clone(), torch.empty(work.shape[0], end - begin)
        rows_of = factor[begin:end, begin:end]
        for j in range(end - begin):
            group = self._group_of[begin + j]
            scale, zero = self.grid.scales[:, group], self.grid.zeros[:, group]
            code = codes_of(block[:, j], scale, zero, self._form)
            error = (block[:, j] - (code - zero) * scale) / rows_of[j, j]
            block[:, j + 1 :] -= error[:, None] * rows_of[j, j + 1 :]
            errors[:, j] = error
            self.codes[:, self._permutation[begin + j]] = code.to(torch.uint8)
        return errors

    def _begin(self, work: Tensor, group: int) -> None:
        """The grid of a group, for its weights as earlier columns have left them."""
        weight = work[:, self._places[group]][:, None]
        found = search(weight, self._form, self._importance[group : group + 1])
        self.grid.scales[:, group], self.grid.zeros[:, group] = (
            found.scales[:, 0],
            found.zeros[:, 0],
        )
        self._begun[group] = True


def prepared(gram: Tensor) -> Tensor:
    """Columns that read nothing but zeros count for themselves alone: they change no other."""
    gram = gram.clone()
    diagonal = gram.diagonal()
    used = diagonal > 0
    diagonal[~used] = diagonal[used].mean() if bool(used.any()) else 1.0
    return gram


def _permutation(diagonal: Tensor, order: str) -> Tensor:
    if order == "natural":
        return torch.arange(len(diagonal))
    return torch.argsort(diagonal, descending=True, stable=True)


def _factor(gram: Tensor) -> tuple[Tensor, float]:
    """The upper Cholesky factor of the inverse, float32, and the damping that it took.

    The damping grows tenfold until both factors exist: a Gram matrix of few or of constant inputs
    has no inverse.
    """
    wide = gram.double() if len(gram) <= _DOUBLE_COLS else gram
    mean, damping = wide.diagonal().mean(), _FIRST_DAMPING
    while damping <= _MOST_DAMPING:
        damped = wide.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and bool(torch.isfinite(factor).all()):
                return factor.float(), damping
        damping *= 10
    return torch.diag(1 / (wide.diagonal() + damping * mean).sqrt()).float(), damping
