"""One decoder layer to codes: what both methods share, and GPTQ over the layer's stages.

A layer's modules hold float32 weights; each matrix that becomes codes is replaced by what the codes
stand for, so that whatever comes behind it is calibrated on what it will really read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from hearth.core.errors import WeightsError
from hearth.core.spec import WeightSlot
from hearth.kernels.packing import CodeRows
from hearth.quant.calibrated.fit import Form, nearest, search
from hearth.quant.calibrated.gptq import Coded, gptq, rows_of
from hearth.quant.calibrated.model import Layer
from hearth.quant.calibrated.products import Rounding
from hearth.quant.calibrated.refine import refined
from hearth.quant.calibrated.states import States
from hearth.quant.calibrated.tails import Tails
from hearth.quant.calibrated.trace import Gram, Grams, Group, LayerTrace, Stage
from hearth.quant.recipe import Recipe

# A matrix that read fewer rows than this (an expert that was rarely chosen) is rounded to nearest.
MIN_ROWS = 128
# Of the Gram matrices that one pass collects; more take more passes.
_GRAM_BYTES = 2 << 30


@dataclass(slots=True)
class LayerWork:
    """A layer at work.

    `run` takes the states of a sequence through it, in float32; `tick(share)`: so much of its
    work is done, 1 in all. `directory`: for what passes keep for each other. `is_rounded`: passes
    over all sequences multiply in bfloat16.
    """

    layer: Layer
    recipe: Recipe
    states: States
    run: Callable[[Tensor], Tensor]
    tick: Callable[[float], None]
    directory: Path
    is_rounded: bool = False
    passes: Passes | None = None
    codes: dict[str, CodeRows] = field(default_factory=dict)  # by the checkpoint's names
    changed: set[str] = field(default_factory=set)  # names in the module of what is not codes
    notes: list[str] = field(default_factory=list)

    @property
    def module(self) -> nn.Module:
        """The layer's module."""
        return self.layer.module

    def weight(self, name: str) -> Tensor:
        """Of a matrix, by its module's name."""
        return self.module.get_parameter(f"{name}.weight")

    def slots(self, name: str) -> list[WeightSlot]:
        """How the parts of a module's weight become codes; empty: not all of them do."""
        parts = self.layer.parts[f"{name}.weight"]
        found = [self.recipe.slot_of(p.entry.name, p.entry.shape) for p in parts if p.is_whole]
        slots = [slot for slot in found if slot is not None]
        return slots if len(slots) == len(parts) else []

    def form(self, name: str) -> Form:
        """Of a matrix that becomes codes."""
        slot = self.slots(name)[0]
        size = slot.cols if self.recipe.per_row else slot.quant.group_size
        return Form(slot.quant.bits, size, slot.quant.symmetric)

    def targets(self) -> list[str]:
        """The modules whose weights become codes here. Raises WeightsError for NaN and Inf."""
        names = []
        for name, module in self.module.named_modules():
            if isinstance(module, nn.Linear) and self.slots(name):
                names.append(name)
                self._check_finite(name, module.weight)
        return names

    def take(self, name: str, coded: Coded) -> None:
        """Keeps a matrix's codes, and puts what they stand for in its place."""
        self.weight(name).copy_(coded.values)
        row = 0
        for part in self.layer.parts[f"{name}.weight"]:
            rows = slice(row, row + part.num_rows)
            zeros = None if coded.form.symmetric else coded.grid.zeros[rows].to(torch.uint8).numpy()
            self.codes[part.entry.name] = CodeRows(
                coded.codes[rows].numpy(), coded.grid.scales[rows].numpy(), zeros
            )
            row += part.num_rows

    def round(self, names: Sequence[str], why: str) -> None:
        """Rounds matrices to the nearest codes, with a note."""
        for name in names:
            self.take(name, rounded(self.weight(name), self.form(name)))
        if names:
            first = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            what = f"{len(names)} matrices rounded to nearest"
            self.notes.append(f"layer {self.layer.index}: {what}, {why}: {first}")

    def _check_finite(self, name: str, weight: Tensor) -> None:
        if not bool(torch.isfinite(weight).all()):
            tensors = ", ".join(p.entry.name for p in self.layer.parts[f"{name}.weight"])
            raise WeightsError(
                f"tensor {tensors} has values that are not finite",
                hint="the weights are damaged: fetch the file again, or ask the model's owner",
            )


def rounded(weight: Tensor, form: Form) -> Coded:
    """Round-to-nearest with the search of `fit`."""
    grid = search(weight.reshape(len(weight), -1, form.group_size), form)
    return Coded(nearest(weight, grid, form), grid, form)


def stages_of(work: LayerWork, targets: list[str]) -> tuple[LayerTrace, list[Stage]]:
    """From one pass of the first sequence."""
    trace = LayerTrace(work.module, lambda: work.run(work.states[0]))
    stages = trace.stages(targets)
    reached = {name for stage in stages for group in stage.groups for name in group.names}
    work.round([name for name in targets if name not in reached], "which nothing reads")
    return trace, stages


class Passes:
    """Over all sequences, by the fastest arithmetic that there is."""

    def __init__(self, work: LayerWork, targets: list[str]) -> None:
        self._work = work
        self._rounding = Rounding(work.module, targets, is_wanted=work.is_rounded)
        self._tails = Tails(work.directory, lambda index: work.run(work.states[index]))

    def keep(self, trace: LayerTrace, stages: list[Stage]) -> None:
        """From here on they keep for each other what finished parts of the layer read."""
        targets = {name for stage in stages for group in stage.groups for name in group.names}
        order = [event.name for event in trace.events if event.name in targets]
        with self._rounding.on():
            self._tails.find(self._work.module, order, stages, self._rounding.kind_of)

    @contextmanager
    def over(self, stage: Stage | None = None) -> Iterator[Callable[[int], Tensor]]:
        """Gives what runs a sequence, by its number. What `stage` reads is kept if it helps."""
        with self._rounding.on():
            if stage is None:
                yield self._tails.pass_over
                return
            with self._tails.recording(self._work.module, stage):
                yield self._tails.pass_over

    def close(self) -> None:
        """Gives back what passes have kept."""
        self._tails.close()
        if self._tails.is_full:
            self._work.notes.append(
                f"layer {self._work.layer.index}: the disk has no room for what its parts read, "
                "which therefore ran several times"
            )


def grams_of(work: LayerWork, stage: Stage, share: float) -> Iterator[tuple[Group, Gram]]:
    """The groups of a stage with their Gram matrices, as many at a time as memory takes."""
    assert work.passes is not None
    for groups in _batches(work, stage.groups):
        stop = (*stage.stop, *(group.width for group in groups if stage.is_once))
        grams = Grams(work.module, groups, stop)
        part = share * len(groups) / len(stage.groups) / len(work.states)
        with work.passes.over(stage) as run, grams.watching() as take:
            for index in range(len(work.states)):
                take(partial(run, index))
                work.tick(part)
        grams.finish(f"layer {work.layer.index}: ")
        for group in groups:
            yield group, grams.found.pop(group.width)


def quantize_by_gptq(work: LayerWork) -> None:
    """All of a layer's matrices, stage by stage."""
    targets = work.targets()
    trace, stages = stages_of(work, targets)
    work.passes = Passes(work, targets)
    work.passes.keep(trace, stages)
    trace.events.clear()
    dampings: list[float] = []
    for stage in stages:
        rare: list[str] = []
        for group, gram in grams_of(work, stage, 1 / len(stages)):
            if gram.num_rows < MIN_ROWS:
                rare += group.names
                continue
            dampings += [_by_gptq(work, group.names, gram.sums)]
        work.round(rare, f"which the calibration text reaches with fewer than {MIN_ROWS} tokens")
    if any(damping > 1 for damping in dampings):
        work.notes.append(
            f"layer {work.layer.index}: inputs that hardly vary took a damping of "
            f"{max(dampings):g}; a longer or more varied text may do better"
        )


def _by_gptq(work: LayerWork, names: list[str], gram: Tensor) -> float:
    """Matrices that read the same: as one, behind each other. Returns the damping."""
    damping = 0.0
    for form in dict.fromkeys(work.form(name) for name in names):
        together = [name for name in names if work.form(name) == form]
        weight = torch.cat([work.weight(name) for name in together])
        coded = refined(weight, gram, gptq(weight, gram, form))
        damping = max(damping, coded.damping)
        row = 0
        for name in together:
            count = len(work.weight(name))
            work.take(name, rows_of(coded, slice(row, row + count)))
            row += count
    return damping


def _batches(work: LayerWork, groups: list[Group]) -> Iterator[list[Group]]:
    batch: list[Group] = []
    size = 0
    for group in groups:
        own = work.weight(group.width).shape[1] ** 2 * 4
        if batch and size + own > _GRAM_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(group)
        size += own
    if batch:
        yield batch
