"""Which module makes what a group of matrices reads, and moving a factor from there into them.

If channel c of a matrix's inputs is divided by s_c and its column c multiplied by s_c, nothing
changes but how well the columns suit their codes. The division goes into whatever makes the
channel: a norm's gain, or rows of an earlier matrix. Both are found in the module graph itself, and
every fold is checked on the layer's output before it counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hearth.quant.calibrated.layer import LayerWork
from hearth.quant.calibrated.trace import Group, LayerTrace

_LIMIT = 1e-4  # of the layer's output, in float32 arithmetic
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True, slots=True)
class Producer:
    """What makes the inputs of a group.

    A norm (`is_norm`), or the rows `first` … of a matrix: channel c of the inputs is linear in row
    first + `row_of[c]`, of `num_rows`.
    """

    name: str
    is_norm: bool
    row_of: Tensor
    num_rows: int
    first: int = 0


def producer_of(work: LayerWork, trace: LayerTrace, group: Group) -> Producer | None:
    """The module whose output can be divided so that only this group's inputs change, or None."""
    if any(not isinstance(work.module.get_submodule(name), nn.Linear) for name in group.readers):
        return None
    cols = work.weight(group.width).shape[1]
    for name in group.producers:
        weight = getattr(work.module.get_submodule(name), "weight", None)
        if isinstance(weight, Tensor) and weight.shape == (cols,):
            return Producer(name, True, torch.arange(cols), cols)
    inputs = _inputs(work, group.width)
    for name in reversed(_before(work, trace, group)):
        for first, count in _row_ranges(work.weight(name).shape[0], cols):
            row_of = _probed(work, name, (first, count), group.width, inputs)
            if row_of is not None:
                return Producer(name, False, row_of, count, first)
    return None


def fold(work: LayerWork, group: Group, producer: Producer, factors: Tensor) -> Tensor | None:
    """Divides the producer by `factors` [num_rows] and multiplies the columns that read it.

    Returns what each column was multiplied with, [cols]; None where the layer's output would
    change: then nothing has.
    """
    before = work.run(work.states[0])
    readers = [*group.names, *group.readers]
    touched = [producer.name, *readers]
    kept = {name: _copies(work.module.get_submodule(name)) for name in touched}
    for is_offset in (False, True) if producer.is_norm else (False,):
        columns = _divide(work, producer, factors, is_offset=is_offset)
        for name in readers:
            work.weight(name).mul_(columns)
        change = (work.run(work.states[0]) - before).norm() / before.norm().clamp_min(1e-30)
        if bool(change <= _LIMIT):
            _note_changes(work, producer, group)
            return columns
        for name, tensors in kept.items():
            for key, values in tensors.items():
                work.module.get_submodule(name).get_parameter(key).copy_(values)
    return None


def _divide(work: LayerWork, producer: Producer, factors: Tensor, *, is_offset: bool) -> Tensor:
    """Returns the columns' factors.

    A norm's gain is rounded to what its file holds, and the factors follow; with `is_offset` the
    norm multiplies by 1 + its weight.
    """
    weight, bias = work.weight(producer.name), _bias(work, producer.name)
    rows = slice(producer.first, producer.first + producer.num_rows)
    if bias is not None:
        bias[rows] /= factors
    if not producer.is_norm:
        weight[rows] /= factors[:, None]
        return factors[producer.row_of]
    offset = 1.0 if is_offset else 0.0
    gain = weight + offset
    kind = _DTYPES[work.layer.parts[f"{producer.name}.weight"][0].entry.dtype]
    weight.copy_((gain / factors - offset).to(kind).float())
    divided = weight + offset
    return torch.where(divided != 0, gain / divided, torch.ones_like(gain))


def _note_changes(work: LayerWork, producer: Producer, group: Group) -> None:
    """What must be written although it is no codes; rounded to the type that it is written in."""
    targets = {name for name in group.readers if work.slots(name)}
    plain = [f"{name}.weight" for name in group.readers if name not in targets]
    if producer.is_norm:
        plain.append(f"{producer.name}.weight")
    if _bias(work, producer.name) is not None:
        plain.append(f"{producer.name}.bias")
    for name in plain:
        values = work.module.get_parameter(name)
        kind = _DTYPES[work.layer.parts[name][0].entry.dtype]
        values.copy_(values.to(kind).float())
    work.changed.update(plain)


def _bias(work: LayerWork, name: str) -> Tensor | None:
    bias = getattr(work.module.get_submodule(name), "bias", None)
    return bias if isinstance(bias, Tensor) else None


def _copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.clone() for name, p in module.named_parameters(recurse=False)}


def _before(work: LayerWork, trace: LayerTrace, group: Group) -> list[str]:
    """Matrices that become codes and are used before the group, in order."""
    names: list[str] = []
    for event in trace.events:
        if event.name in group.names:
            break
        module = work.module.get_submodule(event.name)
        if isinstance(module, nn.Linear) and work.slots(event.name):
            names.append(event.name)
    return names


def _row_ranges(rows: int, cols: int) -> Iterator[tuple[int, int]]:
    """Which rows of an earlier matrix may make `cols` channels.

    All of them (each row several channels where heads share values), or the last ones of a matrix
    that holds several.
    """
    if rows <= cols and cols % rows == 0:
        yield 0, rows
    if rows > cols:
        yield rows - cols, cols
        values = (rows - cols) // 2  # query, key and value in one, heads sharing values
        if rows - cols == 2 * values and 0 < values < cols and cols % values == 0:
            yield rows - values, values


def _inputs(work: LayerWork, name: str) -> Tensor:
    """What a matrix reads for the first sequence, [tokens, cols]."""
    seen: list[Tensor] = []
    handle = work.module.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].reshape(-1, args[0].shape[-1]).clone())
    )
    try:
        work.run(work.states[0])
    finally:
        handle.remove()
    return seen[0]


def _probed(
    work: LayerWork, name: str, rows: tuple[int, int], reader: str, inputs: Tensor
) -> Tensor | None:
    """Multiplies rows by factors that tell them apart; which one each channel follows, or None.

    A channel follows a row if it is multiplied by its factor, the same at all tokens.
    """
    first, count = rows
    module = work.module.get_submodule(name)
    kept = _copies(module)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    factors = torch.logspace(-0.5, 0.5, count, base=2.0)[order]
    work.weight(name)[first : first + count] *= factors[:, None]
    if (bias := _bias(work, name)) is not None:
        bias[first : first + count] *= factors
    try:
        probed = _inputs(work, reader)
    finally:
        for key, values in kept.items():
            module.get_parameter(key).copy_(values)
    if probed.shape != inputs.shape:
        return None
    energy = inputs.square().sum(0)
    if not bool((energy > 0).all()):
        return None
    ratio = (probed * inputs).sum(0) / energy
    left = (probed - ratio * inputs).square().sum(0)
    if bool((left > 1e-8 * energy).any()):
        return None
    ordered, places = torch.sort(factors)
    at = torch.searchsorted(ordered, ratio).clamp(1, max(1, count - 1))
    below = (at - 1).clamp_min(0)
    at = at.clamp_max(count - 1)
    nearest = torch.where((ratio - ordered[below]).abs() < (ordered[at] - ratio).abs(), below, at)
    if bool(((ordered[nearest] - ratio).abs() > 1e-4 * ratio.abs()).any()):
        return None
    return places[nearest]
