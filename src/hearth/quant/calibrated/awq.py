"""AWQ (Lin et al. 2023, arXiv 2306.00978).

Columns that read large inputs are made larger, so that rounding costs them less, and what makes
those inputs is divided by the same factors.
Factors are powers of the inputs' mean magnitude, the power by the least squared output error. Then
the range of each group's codes is narrowed as far as the output error gets smaller.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hearth.quant.calibrated.fit import Form, Grid, bfloat16, codes_of, nearest, search
from hearth.quant.calibrated.fold import Producer, fold, producer_of
from hearth.quant.calibrated.gptq import Coded, output_error, prepared
from hearth.quant.calibrated.layer import MIN_ROWS, LayerWork, Passes, grams_of, rounded, stages_of
from hearth.quant.calibrated.trace import Gram, Group, Stage

_POWERS = tuple(step / 20 for step in range(1, 21))
# Rows of each matrix that the power is chosen by, evenly spread: all of them would take as long as
# everything else together.
_ROWS = 512
_RATIOS = tuple(1.1 - 0.05 * step for step in range(13))  # of a group's plain scale


def quantize_by_awq(work: LayerWork) -> None:
    """All of a layer's matrices: factors for every group, then ranges and codes."""
    targets = work.targets()
    trace, stages = stages_of(work, targets)
    groups = [group for stage in stages for group in stage.groups]
    producers = {group.width: producer_of(work, trace, group) for group in groups}
    scaled = [group for group in groups if producers[group.width] is not None]
    work.passes = Passes(work, targets)
    for group, gram in grams_of(work, Stage(scaled), 0.5):
        producer = producers[group.width]
        if producer is not None and gram.num_rows >= MIN_ROWS:
            _scale(work, group, producer, gram)
    _note_unscaled(work, [g for g in groups if producers[g.width] is None])
    work.passes.keep(trace, stages)
    trace.events.clear()
    for stage in stages:
        rare: list[str] = []
        for group, gram in grams_of(work, stage, 0.5 / len(stages)):
            if gram.num_rows < MIN_ROWS:
                rare += group.names
                continue
            for name in group.names:
                work.take(name, clipped(work.weight(name), gram.sums, work.form(name)))
        work.round(rare, f"which the calibration text reaches with fewer than {MIN_ROWS} tokens")


def _scale(work: LayerWork, group: Group, producer: Producer, gram: Gram) -> None:
    weights = [work.weight(name) for name in group.names]
    forms = [work.form(name) for name in group.names]
    factors = best_factors(weights, forms, gram, producer)
    if factors is not None and fold(work, group, producer, factors) is None:
        work.notes.append(
            f"layer {work.layer.index}: {producer.name} cannot be divided without changing the "
            f"layer's output: {', '.join(group.names)} keep their columns as they are"
        )


def _note_unscaled(work: LayerWork, groups: list[Group]) -> None:
    names = [name for group in groups for name in group.names]
    if names:
        first = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        work.notes.append(
            f"layer {work.layer.index}: nothing could be divided for {len(names)} matrices, whose "
            f"ranges alone are searched: {first}"
        )


def best_factors(
    weights: list[Tensor], forms: list[Form], gram: Gram, producer: Producer
) -> Tensor | None:
    """Of the producer's rows, [num_rows]; None where plain rounding is best."""
    rows = [weight[_some_rows(len(weight))] for weight in weights]
    best = sum(_error(w, f, gram.sums, torch.ones(w.shape[1])) for w, f in zip(rows, forms))
    found = None
    for factors in _candidates(gram, producer):
        columns = factors[producer.row_of]
        error = sum(_error(w, f, gram.sums, columns) for w, f in zip(rows, forms))
        if error < best:
            best, found = error, factors
    return found


def _candidates(gram: Gram, producer: Producer) -> Iterator[Tensor]:
    """A row's factor is made of the mean magnitude of all channels that follow it."""
    sums = torch.zeros(producer.num_rows).index_add_(0, producer.row_of, gram.magnitudes)
    counts = torch.zeros(producer.num_rows).index_add_(
        0, producer.row_of, torch.ones(len(producer.row_of))
    )
    mean = sums / (counts * gram.num_rows).clamp_min(1)
    mean = mean.clamp_min(1e-4 * float(mean.max()) or 1.0)
    for power in _POWERS:
        factors = mean**power
        yield factors / (factors.max() * factors.min()).sqrt()


def _error(weight: Tensor, form: Form, gram: Tensor, columns: Tensor) -> float:
    values = rounded(weight * columns, form).values / columns
    return output_error(weight - values, gram)


def _some_rows(count: int) -> Tensor:
    return torch.arange(0, count, max(1, -(-count // _ROWS)))


def clipped(weight: Tensor, gram: Tensor, form: Form) -> Coded:
    """Rounded to nearest, with the range of each group that leaves the least output error.

    `gram` [cols, cols] of the inputs; a group's error is that of its own columns.
    """
    if form.bits == 8:
        return rounded(weight, form)
    size = form.group_size
    groups = weight.shape[1] // size
    index = torch.arange(weight.shape[1]).reshape(groups, size)
    blocks = prepared(gram)[index[:, :, None], index[:, None, :]]  # [groups, size, size]
    grouped = weight.reshape(len(weight), groups, size)
    best, least = None, torch.empty(0)
    plain = search(grouped, form, prepared(gram).diagonal().reshape(groups, size))
    for grid in (plain, *_grids(grouped, form)):
        codes = codes_of(grouped, grid.scales[..., None], grid.zeros[..., None], form)
        left = (codes - grid.zeros[..., None]) * grid.scales[..., None] - grouped
        apart = left.transpose(0, 1)  # [groups, rows, size]
        error = ((apart @ blocks) * apart).sum(-1).T
        if best is None:
            best, least = grid, error
            continue
        is_better = error < least
        best.scales = torch.where(is_better, grid.scales, best.scales)
        best.zeros = torch.where(is_better, grid.zeros, best.zeros)
        least = torch.minimum(least, error)
    assert best is not None
    return Coded(nearest(weight, best, form), best, form)


def _grids(grouped: Tensor, form: Form) -> Iterator[Grid]:
    """Ranges around the whole one of each group, wider and narrower."""
    low, high = grouped.amin(-1).clamp_max(0), grouped.amax(-1).clamp_min(0)
    most = torch.where(-low > high, low, high)
    for ratio in _RATIOS:
        if form.symmetric:
            scales = bfloat16(-most * (ratio / form.middle))
            yield Grid(scales, torch.full_like(scales, form.middle))
            continue
        scales = bfloat16((high - low) * (ratio / form.highest))
        safe = torch.where(scales > 0, scales, torch.ones_like(scales))
        yield Grid(scales, torch.round(-low * ratio / safe).clamp_(0, form.highest))
