"""Which device holds which part of a model, where one does not hold all of it.

Parts follow each other in the order in which a step needs them, and so do devices: GPUs first, then
the CPU's memory, then the disk, from which a part is read for every step. A device takes parts as
long as they fit beside what it needs for itself. Pure arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hearth.core.program import StepProgram
from hearth.core.spec import WeightSlot
from hearth.core.units import MIB, ceil_div, format_bytes
from hearth.kernels.packing import packed_bytes

_LAYER = re.compile(r"layers\.(\d+)\.")
# Context, kernels and the libraries' own buffers on a GPU (measured: 300 to 600 MiB with CUDA 12).
GPU_RUNTIME_BYTES = 600 * MIB


@dataclass(frozen=True, slots=True)
class Device:
    """A place for weights and KV. `free_bytes` None: without a bound (a disk)."""

    name: str
    free_bytes: int | None


@dataclass(frozen=True, slots=True)
class Part:
    """What stays together: an encoder, the embedding, a layer with its KV cache, the head."""

    name: str
    weight_bytes: int
    kv_bytes: int = 0

    @property
    def num_bytes(self) -> int:
        """Both."""
        return self.weight_bytes + self.kv_bytes


@dataclass(frozen=True, slots=True)
class Assignment:
    """The parts of one device, by what they are called from the first to the last."""

    device: str
    first: str
    last: str
    num_parts: int
    num_bytes: int

    def describe(self) -> str:
        """`gpu 0: embedding to layer 17 (19 parts, 9.85 GiB)`."""
        what = self.first if self.num_parts == 1 else f"{self.first} to {self.last}"
        plural = "s" if self.num_parts > 1 else ""
        size = format_bytes(self.num_bytes)
        return f"{self.device}: {what} ({self.num_parts} part{plural}, {size})"


def parts_of(program: StepProgram, encoder: StepProgram | None, kv_bytes: int) -> tuple[Part, ...]:
    """In the order of a step; `kv_bytes`: of all layers together, shared out equally."""
    sizes: dict[str, int] = {}
    for slot in _all_slots(program, encoder):
        name = _part_name(slot.name)
        sizes[name] = sizes.get(name, 0) + packed_bytes(slot)
    layers = sorted((n for n in sizes if n.startswith("layer ")), key=lambda n: int(n[6:]))
    kv_of_layer = ceil_div(kv_bytes, max(1, len(layers)))
    order = ("vision", "embedding", *layers, "head")
    return tuple(
        Part(name, sizes[name], kv_of_layer if name in layers else 0)
        for name in order
        if name in sizes
    )


def _all_slots(program: StepProgram, encoder: StepProgram | None) -> Iterable[WeightSlot]:
    slots = {slot.name: slot for slot in program.slots}
    slots |= {slot.name: slot for slot in encoder.slots} if encoder is not None else {}
    return slots.values()


def _part_name(slot: str) -> str:
    if (layer := _LAYER.match(slot)) is not None:
        return f"layer {layer[1]}"
    if slot.startswith("vision."):
        return "vision"
    return "embedding" if slot == "embedding" else "head"


def gpu(number: int, total_bytes: int, scratch_bytes: int) -> Device:
    """A GPU, less what its runtime and a step's buffers take."""
    free = max(0, total_bytes - GPU_RUNTIME_BYTES - scratch_bytes)
    return Device(f"gpu {number}", free)


def map_devices(parts: Sequence[Part], devices: Sequence[Device]) -> tuple[Assignment, ...]:
    """Each part on the first device that still has room, never going back to an earlier one.

    The last device takes all that is left, whatever its size.
    """
    assignments: list[Assignment] = []
    left = list(devices)
    used = 0
    for part in parts:
        while len(left) > 1 and not _fits(left[0], used + part.num_bytes):
            left, used = left[1:], 0
        used += part.num_bytes
        if assignments and assignments[-1].device == left[0].name:
            one = assignments[-1]
            assignments[-1] = replace(
                one, last=part.name, num_parts=one.num_parts + 1, num_bytes=used
            )
        else:
            assignments.append(Assignment(left[0].name, part.name, part.name, 1, used))
    return tuple(assignments)


def _fits(device: Device, num_bytes: int) -> bool:
    return device.free_bytes is None or num_bytes <= device.free_bytes
