"""In which order a layer uses its matrices, and which of them read the same values.

Found by running the layer on one sequence with hooks. Matrices that read one tensor form a group
(query, key, value; gate and up) and share a Gram matrix. Groups whose matrices have the same names
but for numbers (experts) form a stage. Stages are quantized one after the other, in the order in
which the layer gets to them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from hearth.core.errors import ModelError

_STRIPE = 1024  # rows of a Gram matrix that are made by one product


@dataclass(slots=True)
class Group:
    """Matrices by name that read the same tensor; `readers`: whatever else reads it."""

    names: list[str]
    readers: list[str] = field(default_factory=list)
    producers: list[str] = field(default_factory=list)  # modules whose output the tensor is

    @property
    def width(self) -> str:
        """The name of the matrix whose inputs are watched for all."""
        return self.names[0]


@dataclass(slots=True)
class Stage:
    """Groups that are quantized from one pass.

    `stop`: the pass may end where these are reached; `is_once`: and where what is watched has been
    seen, since the layer uses its only group once.
    """

    groups: list[Group]
    stop: tuple[str, ...] = ()
    is_once: bool = False


@dataclass(slots=True)
class _Event:
    name: str
    source: Tensor  # kept, so that no other tensor gets its place in memory
    result: Tensor | None


class LayerTrace:
    """What happened in one pass through a layer."""

    def __init__(self, module: nn.Module, run: Callable[[], Tensor]) -> None:
        self.events: list[_Event] = []
        handles = []
        for name, child in module.named_modules():
            if name and not any(True for _ in child.children()):
                handles.append(child.register_forward_hook(self._hook(name)))
        try:
            self.output = run()
        finally:
            for handle in handles:
                handle.remove()

    def stages(self, targets: list[str]) -> list[Stage]:
        """The matrices `targets` in the order of their use; those never used are in none."""
        wanted = set(targets)
        groups: list[Group] = []
        sources: list[Tensor] = []
        for event in self.events:
            if event.name not in wanted or any(event.name in group.names for group in groups):
                continue
            same = next((i for i, s in enumerate(sources) if _is_same(s, event.source)), None)
            if same is None:
                sources.append(event.source)
                groups.append(Group([event.name]))
            else:
                groups[same].names.append(event.name)
        for group, source in zip(groups, sources):
            self._add_neighbours(group, source)
        unseen = [name for name in targets if not any(name in g.names for g in groups)]
        return self._with_stops(_staged(groups, unseen))

    def _add_neighbours(self, group: Group, source: Tensor) -> None:
        for event in self.events:
            if _is_same(event.source, source) and event.name not in group.names:
                group.readers.append(event.name)
            if event.result is not None and _is_same(event.result, source):
                group.producers.append(event.name)

    def _with_stops(self, stages: list[Stage]) -> list[Stage]:
        """A pass for a stage ends where the next begins, if that comes behind all of its own."""
        places: dict[str, list[int]] = {}
        for place, event in enumerate(self.events):
            places.setdefault(event.name, []).append(place)
        for stage in stages:
            names = [name for group in stage.groups for name in group.names]
            once = all(len(places.get(name, ())) == 1 for name in names)
            stage.is_once = len(stage.groups) == 1 and once
        for stage, following in pairwise(stages):
            own = [p for g in stage.groups for n in g.names for p in places.get(n, ())]
            next_names = [n for g in following.groups for n in g.names]
            theirs = [p for n in next_names for p in places.get(n, ())]
            if own and theirs and min(theirs) > max(own):
                stage.stop = tuple(next_names)
        return stages

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def record(_: nn.Module, args: tuple[object, ...], result: object) -> None:
            if args and isinstance(args[0], Tensor):
                made = result if isinstance(result, Tensor) else None
                self.events.append(_Event(name, args[0], made))

        return record


def _staged(groups: list[Group], unseen: list[str]) -> list[Stage]:
    """Neighbours by pattern; matrices that the pass did not reach join those of their pattern."""
    stages: dict[str, Stage] = {}
    for group in groups:
        stages.setdefault(_pattern(group.names[0]), Stage([])).groups.append(group)
    for name in unseen:
        if (stage := stages.get(_pattern(name))) is not None:
            stage.groups.append(Group([name]))
    return list(stages.values())


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a is b or (
        a.data_ptr() == b.data_ptr() and a.numel() == b.numel() and a.shape[-1] == b.shape[-1]
    )


class _StopHereError(Exception):
    """The pass has seen what it was for."""


@dataclass(slots=True)
class Gram:
    """XᵀX of what a matrix reads, [cols, cols] float32, over `num_rows` rows of X.

    `magnitudes` [cols]: the sum of |X| over its rows.
    """

    sums: Tensor
    magnitudes: Tensor
    num_rows: int = 0


class Grams:
    """Collects Gram matrices of some groups; a context around the passes."""

    def __init__(self, module: nn.Module, groups: list[Group], stop: tuple[str, ...] = ()) -> None:
        """`stop`: the modules that no pass needs to run."""
        self._module, self._groups, self._stop = module, groups, stop
        self.found: dict[str, Gram] = {}
        for group in groups:
            cols = module.get_parameter(f"{group.width}.weight").shape[1]
            self.found[group.width] = Gram(torch.zeros(cols, cols), torch.zeros(cols))

    @contextmanager
    def watching(self) -> Iterator[Callable[[Callable[[], Tensor]], None]]:
        """Gives what takes a pass, and ends it where nothing more can come."""
        handles = [
            self._module.get_submodule(g.width).register_forward_pre_hook(self._add(g.width))
            for g in self._groups
        ]
        handles += [
            self._module.get_submodule(name).register_forward_pre_hook(_stop) for name in self._stop
        ]

        def take(run: Callable[[], Tensor]) -> None:
            with suppress(_StopHereError):
                run()

        try:
            yield take
        finally:
            for handle in handles:
                handle.remove()

    def finish(self, where: str) -> None:
        """Makes the matrices whole. Raises ModelError where inputs were not finite."""
        for name, gram in self.found.items():
            _mirror(gram.sums)
            if not bool(torch.isfinite(gram.sums).all()):
                raise ModelError(
                    f"{where}{name} reads values that are not finite, or too large to be squared",
                    hint="the weights are damaged, or the model needs float64; --method rtn looks "
                    "at weights alone",
                )

    def _add(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        gram = self.found[name]

        def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = args[0].reshape(-1, args[0].shape[-1])
            for begin in range(0, rows.shape[1], _STRIPE):  # the upper half alone
                columns = rows[:, begin : begin + _STRIPE]
                gram.sums[begin : begin + _STRIPE, begin:].addmm_(columns.T, rows[:, begin:])
            gram.magnitudes += rows.abs().sum(0)
            gram.num_rows += len(rows)

        return add


def _mirror(sums: Tensor) -> None:
    """Puts the upper half of a symmetric matrix into its lower one."""
    for begin in range(0, len(sums), _STRIPE):
        end = begin + _STRIPE
        square = sums[begin:end, begin:end]
        square.copy_(square.triu() + square.triu(1).T)
        sums[end:, begin:end] = sums[begin:end, end:].T


def _stop(_: nn.Module, __: object) -> None:
    raise _StopHereError
