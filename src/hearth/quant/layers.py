"""Where an error comes from: layer by layer and matrix by matrix, fed with the reference's inputs.

Both models run one short text operation by operation (kernels as served, but not fused, which
changes no bit). At each layer the model's residual stream is set to the reference's, so that what
is measured is that layer's own error; once more it goes on with its own, which is what adds up.
Each matrix gets the rows that the reference's matrix read (experts their choice, too). Errors are
relative squared ones: Σ(y − y_ref)² / Σ y_ref², over all rows of the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hearth.core.program import Experts, Linear, Norm, Quantize, StepProgram
from hearth.core.step import StepLimits, StepPlan
from hearth.engine.canary_weights import rounding_before
from hearth.engine.plain_steps import Layout, Rows, step_plan
from hearth.kernels.cpu.executor import CpuExecutor, Tiling
from hearth.models.loader import LoadedSpec
from hearth.quant.sides import PlannedSide, Side

MOST_TOKENS = 128

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LayerError:
    """Of one layer's output. `own`: fed with the reference's input; `added_up`: with its own."""

    layer: int
    own: float
    added_up: float


@dataclass(frozen=True, slots=True)
class MatrixError:
    """Of one linear layer's output, fed with the reference's input; experts count as one.

    `layer` −1: the head. `name`: of the weight slot, of experts that of gate and up.
    """

    layer: int
    name: str
    storage: str
    error: float


@dataclass(frozen=True, slots=True)
class LayerReport:
    """All layers in order, and all matrices, the worst first. `num_tokens`: of the text."""

    layers: tuple[LayerError, ...]
    matrices: tuple[MatrixError, ...]
    num_tokens: int

    @property
    def worst_layer(self) -> LayerError:
        """The culprit."""
        return max(self.layers, key=lambda layer: layer.own)

    @property
    def worst_matrix(self) -> MatrixError:
        """The culprit."""
        return self.matrices[0]


def layer_report(model: Side, reference: Side, tokens: Sequence[int]) -> LayerReport | str:
    """Measures all layers on the first MOST_TOKENS of `tokens`, or says why it cannot."""
    if why := why_not(model.plan, reference.plan):
        return why
    tokens = layer_tokens(model.plan, tokens)
    with closing(_run_of(reference, tokens)) as run:
        return compare_layers(model, walk(run), tokens)


def layer_tokens(plan: PlannedSide, tokens: Sequence[int]) -> Sequence[int]:
    """Those that layers are measured on: one step."""
    return tokens[: min(MOST_TOKENS, plan.layout.step_tokens)]


def why_not(model: PlannedSide, reference: PlannedSide) -> str:
    """Why layers of two models cannot be compared; empty: they can."""
    one, other = model.loaded, reference.loaded
    if not isinstance(one, LoadedSpec) or not isinstance(other, LoadedSpec):
        return "a model that transformers runs has no program of single operations"
    if not model.backend.name == reference.backend.name == "cpu":
        return "only the C++ kernels run single operations"
    if _shape_of(one.program) != _shape_of(other.program):
        return "the models have different layers"
    return ""


def compare_layers(
    model: Side, seen: Iterable[SeenOperation], tokens: Sequence[int]
) -> LayerReport:
    """Of what the reference did on the same tokens, as `walk` gives it."""
    with closing(_run_of(model, tokens)) as run:
        return _compare(run, seen, len(tokens))


@contextmanager
def walked(reference: Side, tokens: Sequence[int]) -> Iterator[Iterator[SeenOperation]]:
    """What a reference does on some tokens."""
    with closing(_run_of(reference, tokens)) as run:
        yield walk(run)


def walk_bytes(plan: PlannedSide, num_tokens: int) -> int:
    """What all of `walk` takes."""
    program = plan.loaded.program
    widths = [
        program.buffers[i].width for part in _parts(program) for i in (*part.inputs, part.out)
    ]
    assert isinstance(plan.loaded, LoadedSpec)
    hidden = plan.loaded.spec.hidden_size * (len(plan.loaded.spec.layers) + 1)
    return 4 * num_tokens * (sum(widths) + hidden)


def _run_of(side: Side, tokens: Sequence[int]) -> _Run:
    assert isinstance(side.executor, CpuExecutor)
    assert isinstance(side.plan.loaded, LoadedSpec)
    return _Run(side.executor, side.plan.loaded, side, tokens)


def relative_error(reference: Floats, other: Floats) -> float:
    """Σ(other − reference)² / Σ reference²; 0 where both are 0."""
    one = reference.astype(np.float64)
    size, off = float((one**2).sum()), float(((other - one) ** 2).sum())
    return off / size if size else float(off > 0)


class _Run:
    """A model, operation by operation, with one sequence of one step."""

    def __init__(
        self, executor: CpuExecutor, loaded: LoadedSpec, side: Side, tokens: Sequence[int]
    ) -> None:
        count = len(tokens)
        self.program, self.loaded, self.num_rows = executor.program, loaded, count
        size = side.shape.kv.block_size
        blocks = -(-count // size)
        kv = replace(side.shape.kv, num_blocks=(blocks,) * len(side.shape.kv.num_blocks))
        limits = StepLimits(count, 1, count, max(count, 2))
        isa = executor.info.detail.partition(",")[0]
        threads = side.plan.num_threads
        self.executor = CpuExecutor(
            self.program, executor.weights, limits, kv, threads, isa, Tiling(frozenset())
        )
        layout = Layout(size, blocks, 1, count)
        groups = len(self.program.kv_groups)
        self._plan: StepPlan = step_plan([Rows(tokens, 0, 0, count)], layout, groups)
        self.borders = list(_borders(self.program, loaded))

    def close(self) -> None:
        """Ends the executor."""
        self.executor.close()

    def run(self, first: int, last: int) -> None:
        """Operations `first` … `last` − 1."""
        self.executor.execute_part(self._plan, first, last)

    def read(self, buffer: int) -> Floats:
        """All rows of a buffer."""
        return self.executor.read_buffer(buffer, self.num_rows)


@dataclass(frozen=True, slots=True)
class _Border:
    """The norm that a layer, or the head, begins with: the operation, and what it reads."""

    at: int
    hidden: int


def _borders(program: StepProgram, loaded: LoadedSpec) -> Iterator[_Border]:
    """Of each layer, in order, and of the head."""
    names = [layer.attention_norm.weight for layer in loaded.spec.layers]
    places = {op.weight: (at, op.x) for at, op in enumerate(program.ops) if isinstance(op, Norm)}
    for name in (*names, loaded.spec.final_norm.weight):
        at, hidden = places[name]
        yield _Border(at, hidden)


def _shape_of(program: StepProgram) -> list[tuple[str, int, int]]:
    """What two programs of the same architecture have in common."""
    slots = {slot.name: slot for slot in program.slots}
    names = [part.name for part in _parts(program)]
    return [(name, slots[name].total_rows, slots[name].cols) for name in names]


@dataclass(frozen=True, slots=True)
class _Part:
    """An operation with matrices: where it stands, what it reads and writes.

    `inputs`: buffers of float32; the first is rounded by operation `rounding`, where there is one.
    """

    at: int
    name: str  # of its (first) slot
    inputs: tuple[int, ...]
    rounding: int | None
    out: int


def _parts(program: StepProgram) -> list[_Part]:
    """All linear layers, and the experts of a layer as one."""
    found = []
    for at, op in enumerate(program.ops):
        if not isinstance(op, Linear | Experts):
            continue
        rounding = rounding_before(program.ops, at, op.x)
        rounded = None if rounding is None else program.ops[rounding]
        x = rounded.x if isinstance(rounded, Quantize) else op.x
        if isinstance(op, Linear):
            found.append(_Part(at, op.weight, (x,), rounding, op.out))
        else:
            found.append(_Part(at, op.gate_up, (x, op.logits), rounding, op.out))
    return found


@dataclass(frozen=True, slots=True)
class SeenOperation:
    """What an operation read and wrote, and, at a border, the residual stream before it.

    `name` is empty, and the rest of no use, where the operation has no matrices.
    """

    state: Floats | None
    name: str
    inputs: tuple[Floats, ...]
    out: Floats | None


def _compare(model: _Run, seen: Iterable[SeenOperation], num_tokens: int) -> LayerReport:
    states, matrices = _compare_matrices(model, seen)
    own = _layer_errors(model, states, fed=True)
    added = _layer_errors(model, states, fed=False)
    layers = [LayerError(i, *both) for i, both in enumerate(zip(own, added, strict=True))]
    ranked = sorted(matrices, key=lambda matrix: -matrix.error)
    return LayerReport(tuple(layers), tuple(ranked), num_tokens)


def walk(reference: _Run) -> Iterator[SeenOperation]:
    """Borders and operations with matrices, in order."""
    parts = {part.at: part for part in _parts(reference.program)}
    borders = {border.at: border for border in reference.borders}
    for at in range(len(reference.program.ops) - 1):  # not the sampling
        state = reference.read(borders[at].hidden) if at in borders else None
        part = parts.get(at)
        inputs = () if part is None else tuple(reference.read(buffer) for buffer in part.inputs)
        reference.run(at, at + 1)
        if part is not None:
            yield SeenOperation(state, part.name, inputs, reference.read(part.out))
        elif state is not None:
            yield SeenOperation(state, "", (), None)


def _compare_matrices(
    model: _Run, seen: Iterable[SeenOperation]
) -> tuple[list[Floats], list[MatrixError]]:
    """The reference's residual stream at each border; meanwhile each matrix of the model."""
    counterparts = {part.name: part for part in _parts(model.program)}
    head = len(model.borders) - 1
    states: list[Floats] = []
    matrices: list[MatrixError] = []
    for one in seen:
        if one.state is not None:
            states.append(one.state)
        if one.out is not None:
            error = relative_error(one.out, _fed(model, counterparts[one.name], one.inputs))
            layer = len(states) - 1
            storage = model.program.slot(one.name).quant.name
            matrices.append(MatrixError(-1 if layer == head else layer, one.name, storage, error))
    return states, matrices


def _fed(run: _Run, part: _Part, inputs: Sequence[Floats]) -> Floats:
    """What an operation makes of given rows."""
    for buffer, rows in zip(part.inputs, inputs, strict=True):
        run.executor.write_buffer(buffer, rows)
    if part.rounding is not None:
        run.run(part.rounding, part.rounding + 1)
    run.run(part.at, part.at + 1)
    return run.read(part.out)


def _layer_errors(run: _Run, states: Sequence[Floats], *, fed: bool) -> list[float]:
    """Of the residual stream behind each layer; `fed`: each layer begins with the reference's."""
    errors = []
    run.run(0, run.borders[0].at)
    for number, (begin, end) in enumerate(zip(run.borders, run.borders[1:])):
        if fed:
            run.executor.write_buffer(begin.hidden, states[number])
        run.run(begin.at, end.at)
        errors.append(relative_error(states[number + 1], run.read(end.hidden)))
    return errors
