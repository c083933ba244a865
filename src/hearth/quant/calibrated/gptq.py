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

from hearth.quant.calibrated.factor import inverse_factor
from hearth.quant.calibrated.fit import Form, Grid, codes_of, search, values_of
from hearth.quant.calibrated.parts import one_thread, over_rows

ORDERS = ("columns", "natural")
_BLOCK = 128  # columns between two products with all columns to come
_FEW = 16  # … between two products with the rest of a block


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
    diagonal = used_diagonal(gram)
    permutation = _permutation(diagonal, order)
    factor, damping = inverse_factor(gram, diagonal, permutation)

    def part(rows: slice) -> Coded:
        visit = _Visit(weight[rows], diagonal, permutation, form)
        visit.all_columns(factor)
        return Coded(visit.codes.T.contiguous(), visit.grid, form, damping)

    return joined(over_rows(len(weight), part))


def rows_of(coded: Coded, rows: slice) -> Coded:
    """Some of them."""
    grid = Grid(coded.grid.scales[rows], coded.grid.zeros[rows])
    return Coded(coded.codes[rows], grid, coded.form, coded.damping)


def joined(parts: list[Coded]) -> Coded:
    """Rows behind each other."""
    grid = Grid(
        torch.cat([part.grid.scales for part in parts]),
        torch.cat([part.grid.zeros for part in parts]),
    )
    codes = torch.cat([part.codes for part in parts])
    return Coded(codes, grid, parts[0].form, parts[0].damping)


class _Visit:
    """Codes as far as columns have been visited.

    Here a column of the matrix is a row of memory: `work` [cols, rows] in the order of the visit,
    `codes` [cols, rows] in their own.
    """

    def __init__(self, weight: Tensor, diagonal: Tensor, permutation: Tensor, form: Form) -> None:
        rows, cols = weight.shape
        groups = cols // form.group_size
        self.work = weight.T[permutation]
        self.codes = torch.zeros(cols, rows, dtype=torch.uint8)
        self.grid = Grid(torch.zeros(rows, groups), torch.zeros(rows, groups))
        self._form, self._columns = form, permutation.tolist()
        self._group_of = (permutation // form.group_size).tolist()
        self._places = torch.argsort(permutation).reshape(groups, form.group_size)
        self._importance = diagonal.reshape(groups, form.group_size)
        self._grids: dict[int, tuple[Tensor, Tensor]] = {}  # scales and zeros [rows] of a group

    def all_columns(self, factor: Tensor) -> None:
        """Visits them."""
        cols = len(self.work)
        for begin in range(0, cols, _BLOCK):
            end = min(begin + _BLOCK, cols)
            with one_thread():
                errors = self._block(factor, begin, end)
            self.work[end:].addmm_(factor[begin:end, end:].T, errors, alpha=-1)

    def _block(self, factor: Tensor, begin: int, end: int) -> Tensor:
        """Codes of the columns at `begin` … `end` − 1; what they leave to the ones behind."""
        for group in dict.fromkeys(self._group_of[begin:end]):
            if group not in self._grids:
                self._begin(group)
        errors = torch.empty(end - begin, self.work.shape[1])
        for first in range(begin, end, _FEW):
            last = min(first + _FEW, end)
            for j in range(first, last):
                error = errors[j - begin]
                torch.div(self._rounded(j), factor[j, j], out=error)
                self.work[j + 1 : last].addr_(factor[j, j + 1 : last], error, alpha=-1)
            few = errors[first - begin : last - begin]
            self.work[last:end].addmm_(factor[first:last, last:end].T, few, alpha=-1)
        return errors

    def _rounded(self, j: int) -> Tensor:
        """Takes the codes of a column; what they leave of it."""
        scale, zero = self._grids[self._group_of[j]]
        code = codes_of(self.work[j], scale, zero, self._form)
        self.codes[self._columns[j]] = code
        return self.work[j] - (code - zero).mul_(scale)

    def _begin(self, group: int) -> None:
        """The grid of a group, for its weights as earlier columns have left them."""
        weight = self.work[self._places[group]].T.contiguous()[:, None]
        found = search(weight, self._form, self._importance[group : group + 1])
        self.grid.scales[:, group], self.grid.zeros[:, group] = (
            found.scales[:, 0],
            found.zeros[:, 0],
        )
        self._grids[group] = found.scales[:, 0].contiguous(), found.zeros[:, 0].contiguous()


def used_diagonal(gram: Tensor) -> Tensor:
    """Of `prepared(gram)`."""
    diagonal = gram.diagonal().clone()
    used = diagonal > 0
    diagonal[~used] = diagonal[used].mean() if bool(used.any()) else 1.0
    return diagonal


def prepared(gram: Tensor) -> Tensor:
    """Columns that read nothing but zeros count for themselves alone: they change no other."""
    gram = gram.clone()
    gram.diagonal().copy_(used_diagonal(gram))
    return gram


def _permutation(diagonal: Tensor, order: str) -> Tensor:
    if order == "natural":
        return torch.arange(len(diagonal))
    return torch.argsort(diagonal, descending=True, stable=True)
