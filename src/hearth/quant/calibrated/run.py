"""A whole model by GPTQ or AWQ: layer after layer into files of their own, the rest to nearest.

What is on the disk decides where a run goes on: `layer-00003.safetensors` is there only when layer
3 is done and the states that layer 4 reads are whole, and both say in their headers from which
model, by which method and over which text they were made. `states-*` go when they are not needed
any more; `config.json` comes last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hearth.core.errors import KernelError, WeightsError
from hearth.core.units import format_duration
from hearth.kernels.cpu.quantize import quantize_rows
from hearth.kernels.packing import HostTensor
from hearth.models.loader import load_model_spec
from hearth.models.safetensors_file import TensorEntry, read_checkpoint
from hearth.models.safetensors_writer import SafetensorsWriter, TensorSpec
from hearth.models.weight_plan import READABLE
from hearth.quant.calibrated.awq import quantize_by_awq
from hearth.quant.calibrated.estimate import measured_speed, operations_of
from hearth.quant.calibrated.layer import LayerWork, quantize_by_gptq
from hearth.quant.calibrated.model import StreamedModel
from hearth.quant.calibrated.products import bfloat16_instruction, fastest_float32
from hearth.quant.calibrated.states import StateFiles
from hearth.quant.calibrated.text import Calibration, check_vocabulary
from hearth.quant.checkpoint import (
    Conversion,
    Scheme,
    check_room,
    conversion_of,
    copy_rest,
    drop_leftovers,
    identity_of,
    prepare,
    weight_files,
)
from hearth.quant.rows import whole_row_codes
from hearth.quant.schemes import check_method
from hearth.quant.shard import CodesWriter, coded_specs

_METHODS: dict[str, Callable[[LayerWork], None]] = {
    "gptq": quantize_by_gptq,
    "awq": quantize_by_awq,
}
# Of what decides a layer's codes beside model, scheme, method and text.
_VERSION = 2
_FORWARD_SHARE = 0.2  # of a layer's work, about: the pass that makes the next layer's states


class Observer(Protocol):
    """Is told how a run goes on."""

    def begin(self, title: str, total: float) -> None:
        """Work of so many units begins."""

    def advance(self, amount: float) -> None:
        """So many more units are done."""

    def note(self, text: str) -> None:
        """Something to tell the user."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted. `method`: gptq, awq."""

    source: Path
    target: Path
    scheme: Scheme
    method: str
    calibration: Calibration
    ignore: tuple[str, ...] = ()


def quantize_calibrated(order: Order, observer: Observer) -> Conversion:
    """Writes the quantized model; goes on where an earlier run of the same order stopped.

    Raises ModelError, WeightsError, ConfigError, CapacityError, HearthError.
    """
    check_method(order.scheme, order.method)
    instruction = bfloat16_instruction()
    conversion = _conversion_of(order, instruction)
    prepare(order.source, order.target)
    run = _Run(order, conversion, observer, instruction)
    with fastest_float32():
        layers = run.layers()
    kept = {run.layer_file(i).name for i in range(run.num_layers)} | run.rest(layers)
    files = weight_files(order.source)
    drop_leftovers(order.target, kept)
    copy_rest(order.source, order.target, {path.name for path in files})
    conversion.finish(order.target, order.source / "config.json")
    return conversion


def is_finished(order: Order, observer: Observer) -> bool:
    """Whether `quantize_calibrated` has done this before, with nothing changed since.

    Raises ModelError, WeightsError, ConfigError.
    """
    if not (order.target / "config.json").exists():  # it comes last
        return False
    instruction = bfloat16_instruction()
    run = _Run(order, _conversion_of(order, instruction), observer, instruction)
    return all(run.is_done(index) for index in range(run.num_layers))


def _conversion_of(order: Order, instruction: str) -> Conversion:
    products = "bfloat16" if instruction else "float32"
    how = f", {order.method} version {_VERSION} over {order.calibration.identity} in {products}"
    return conversion_of(order.source, order.scheme, order.ignore, how)


class _Run:
    """The layers of one order."""

    def __init__(
        self, order: Order, conversion: Conversion, observer: Observer, instruction: str
    ) -> None:
        """`instruction`: for products of bfloat16, "" where there is none."""
        self._order, self._conversion, self._observer = order, conversion, observer
        self._instruction = instruction
        self._loaded = load_model_spec(order.source)
        self._checkpoint = read_checkpoint(order.source)
        check_vocabulary(order.calibration, self._loaded.spec.vocab_size)
        self._model = StreamedModel(self._loaded, self._checkpoint)
        self._identity = "; ".join(identity_of(path) for path in weight_files(order.source))
        shape = (*order.calibration.tokens.shape, self._loaded.spec.hidden_size)
        made = conversion.made_of(f"states of {self._identity}")
        self._states = StateFiles(order.target, shape, made)
        self._tensors: set[str] = set()

    @property
    def num_layers(self) -> int:
        """Of the model."""
        return self._model.num_layers

    def layer_file(self, index: int) -> Path:
        """Where a layer's tensors go."""
        return self._order.target / f"layer-{index:05}.safetensors"

    def layers(self) -> set[str]:
        """All layers; the names of their tensors in the source."""
        first = self._first()
        states = 2 * self._states.num_bytes if first < self.num_layers else 0
        room = self._conversion.expected_bytes + states
        check_room(self._order.target, [p.name for p in self._order.target.iterdir()], room)
        if first < self.num_layers:
            what = f"layers {first + 1} to {self.num_layers}"
            self._observer.begin(what, self.num_layers - first)
            self._say_how_long(first)
            self._model.begin(self._order.calibration.tokens)
            self._embed(first)
        for index in range(first, self.num_layers):
            self._layer(index)
        names = set()
        for index in range(self.num_layers):
            self._conversion.note(self.layer_file(index))
            names |= {entry.name for entry in self._model.entries(index)}
        return names

    def _say_how_long(self, first: int) -> None:
        """Which arithmetic it is, and of GPTQ about how long it will take."""
        arithmetic = f"bfloat16 ({self._instruction})" if self._instruction else "float32"
        self._observer.note(f"layers run in {arithmetic}, codes are searched in float32")
        if self._order.method != "gptq":
            return
        matrices = [
            (entry.name, entry.shape[0], slot.cols)
            for index in range(first, self.num_layers)
            for entry in self._model.entries(index)
            if (slot := self._conversion.recipe.slot_of(entry.name, entry.shape)) is not None
        ]
        tokens = self._order.calibration.tokens
        speed = measured_speed(is_rounded=bool(self._instruction))
        seconds = operations_of(matrices, tokens.size).seconds(speed)
        self._observer.note(
            f"about {format_duration(seconds)} at this processor's speed for {len(tokens)} x "
            f"{tokens.shape[1]} tokens; fewer --calibration-sequences take less"
        )

    def rest(self, layers: set[str]) -> set[str]:
        """All tensors but those of `layers`, to nearest; the names of their files."""
        sizes: dict[Path, int] = {}
        for name, entry in self._checkpoint.tensors.items():
            if name not in layers:
                sizes[entry.path] = sizes.get(entry.path, 0) + entry.end - entry.begin
        self._observer.begin("embedding, head and the rest", sum(sizes.values()))
        kept = set()
        for path, num_bytes in sizes.items():
            target = self._order.target / f"rest-{path.name}"
            identity = f"what layers leave of {identity_of(path)}"
            done = [0]

            def on_bytes(count: int, done: list[int] = done) -> None:
                done.append(count)
                self._observer.advance(count)

            self._conversion.convert(path, target, identity, on_bytes, left_out=layers)
            self._observer.advance(num_bytes - sum(done))  # where it was made before
            kept.add(target.name)
        return kept

    def _first(self) -> int:
        """The first layer that is still to do."""
        first = 0
        while first < self.num_layers and self.is_done(first):
            first += 1
        if first == 0:
            return first
        if first == self.num_layers:
            self._observer.note(f"all {first} layers are done: goes on behind them")
            return first
        if self._states.has(first):
            self._observer.note(f"goes on with layer {first + 1} of {self.num_layers}")
            return first
        self._observer.note(
            f"{first} layers are done, but the states behind them are gone: begins again"
        )
        return 0

    def is_done(self, index: int) -> bool:
        """Whether a layer's file is there, of this order."""
        return self._conversion.is_made(self.layer_file(index), self._identity_of(index))

    def _identity_of(self, index: int) -> str:
        return f"layer {index} of {self._identity}"

    def _embed(self, first: int) -> None:
        if first or self._states.has(0):
            return
        with self._states.writing(0) as write:
            for index in range(len(self._order.calibration.tokens)):
                write(index, self._model.embedded(index))

    def _layer(self, index: int) -> None:
        with torch.no_grad(), self._model.layer(index) as layer:
            states = self._states.reading(index)
            work = LayerWork(
                layer,
                self._conversion.recipe,
                states,
                lambda one: self._model.run(layer, one),
                lambda share: self._observer.advance(share * (1 - _FORWARD_SHARE)),
                self._order.target,
                is_rounded=bool(self._instruction),
            )
            try:
                _METHODS[self._order.method](work)
                if index + 1 < self.num_layers:
                    self._write_states(work)
            finally:
                if work.passes is not None:
                    work.passes.close()
            self._write(work)
        for note in work.notes:
            self._observer.note(note)
        self._states.remove(index)
        self._observer.advance(_FORWARD_SHARE)

    def _write_states(self, work: LayerWork) -> None:
        """What the layer behind this one reads."""
        assert work.passes is not None
        with self._states.writing(work.layer.index + 1) as write, work.passes.over() as run:
            for i in range(len(work.states)):
                write(i, run(i))

    def _write(self, work: LayerWork) -> None:
        """The layer's file: codes, and everything else as the checkpoint has it."""
        recipe, index = self._conversion.recipe, work.layer.index
        self._round_others(work)
        specs: list[TensorSpec] = []
        for entry in work.layer.entries:
            slot = recipe.slot_of(entry.name, entry.shape)
            if slot is None:
                specs.append(TensorSpec(entry.name, entry.dtype, entry.shape))
            else:
                specs += coded_specs(entry.name, slot, entry.shape[0], per_row=recipe.per_row)
        made = self._conversion.made_of(self._identity_of(index))
        changed = _changed(work)
        with SafetensorsWriter(self.layer_file(index), specs, {"format": "pt", **made}) as writer:
            sink = CodesWriter(writer, per_row=recipe.per_row)
            for entry in work.layer.entries:
                slot = recipe.slot_of(entry.name, entry.shape)
                if slot is None:
                    values = changed.get(entry.name)
                    writer.write(entry.name, self._raw(entry) if values is None else values)
                else:
                    sink.write(entry.name, slot, work.codes[entry.name])
                    sink.finish(entry.name, (entry.shape[0], slot.cols))

    def _round_others(self, work: LayerWork) -> None:
        """Codes of what is no linear module of transformers'."""
        recipe, rounded = self._conversion.recipe, []
        for entry in work.layer.entries:
            slot = recipe.slot_of(entry.name, entry.shape)
            if slot is None or entry.name in work.codes:
                continue
            tensor = HostTensor(
                self._raw(entry), READABLE[entry.dtype], (entry.shape[0], slot.cols)
            )
            try:
                make = whole_row_codes if recipe.per_row else quantize_rows
                work.codes[entry.name] = make(slot, tensor)
            except KernelError as error:
                raise WeightsError(f"tensor {entry.name}: {error.message}") from error
            rounded.append(entry.name)
        if rounded:
            work.notes.append(
                f"layer {work.layer.index}: {len(rounded)} matrices rounded to nearest, which "
                f"transformers holds in another form: {', '.join(rounded[:3])}"
            )

    def _raw(self, entry: TensorEntry) -> np.ndarray:
        mapped = self._model.reader.map_of(entry.path)
        return np.frombuffer(mapped, np.uint8, entry.end - entry.begin, entry.begin).copy()


def _changed(work: LayerWork) -> dict[str, np.ndarray]:
    """What AWQ has changed beside codes, in the checkpoint's types."""
    found = {}
    for name in work.changed:
        values: Tensor = work.module.get_parameter(name)
        row = 0
        for part in work.layer.parts[name]:
            rows = values[row : row + part.num_rows]
            found[part.entry.name] = raw_values(rows, part.entry.dtype)
            row += part.num_rows
    return found


def raw_values(values: Tensor, dtype: str) -> np.ndarray:
    """float32 as the bytes of a safetensors type."""
    kind = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[dtype]
    return values.contiguous().to(kind).view(torch.uint8).numpy()
