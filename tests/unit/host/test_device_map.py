"""Which device holds which part: in order, within bounds, nothing lost."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tests.autoglm import write_autoglm

from hearth.core.units import GIB
from hearth.host.device_map import Device, Part, gpu, map_devices, parts_of
from hearth.kernels.packing import packed_bytes
from hearth.models.loader import load_model_spec

DISK = Device("disk", None)


def test_the_parts_of_a_model_are_all_of_its_weights_in_the_order_of_a_step(
    tmp_path: Path,
) -> None:
    loaded = load_model_spec(write_autoglm(tmp_path))
    assert loaded.encoder is not None
    parts = parts_of(loaded.program, loaded.encoder.program, 40 * 1000)
    assert [part.name for part in parts[:3]] == ["vision", "embedding", "layer 0"]
    assert [part.name for part in parts[-2:]] == ["layer 39", "head"]
    slots = {s.name: s for s in (*loaded.program.slots, *loaded.encoder.program.slots)}
    assert sum(p.weight_bytes for p in parts) == sum(packed_bytes(s) for s in slots.values())
    assert {part.kv_bytes for part in parts[2:-1]} == {1000}
    uneven = parts_of(loaded.program, None, 40 * 1000 + 39)
    assert sum(part.kv_bytes for part in uneven) >= 40 * 1000 + 39


def test_one_device_that_holds_everything_gets_everything() -> None:
    parts = (Part("embedding", 5), Part("layer 0", 7, 1), Part("head", 5))
    (only,) = map_devices(parts, (Device("gpu 0", 18), DISK))
    assert (only.device, only.first, only.last, only.num_bytes) == (
        "gpu 0",
        "embedding",
        "head",
        18,
    )
    assert only.describe() == "gpu 0: embedding to head (3 parts, 18 B)"


def test_what_does_not_fit_goes_on_to_the_next_device_and_at_last_to_the_disk() -> None:
    parts = tuple(Part(f"layer {i}", 10) for i in range(6))
    found = map_devices(parts, (Device("gpu 0", 25), Device("cpu", 30), DISK))
    assert [(a.device, a.first, a.last) for a in found] == [
        ("gpu 0", "layer 0", "layer 1"),
        ("cpu", "layer 2", "layer 4"),
        ("disk", "layer 5", "layer 5"),
    ]


def test_a_device_too_small_for_any_part_is_left_out() -> None:
    found = map_devices((Part("layer 0", 10),), (Device("gpu 0", 5), Device("cpu", 30)))
    assert [a.device for a in found] == ["cpu"]


def test_a_gpu_gives_what_its_runtime_and_buffers_leave() -> None:
    assert gpu(1, 24 * GIB, GIB).free_bytes == 23 * GIB - 600 * 1024 * 1024
    assert gpu(1, GIB // 4, 0).free_bytes == 0


@given(
    st.lists(st.integers(0, 100), min_size=1, max_size=40),
    st.lists(st.integers(0, 300), max_size=4),
)
def test_every_part_lies_somewhere_once_in_order_and_no_device_is_overfull(
    sizes: list[int], rooms: list[int]
) -> None:
    parts = tuple(Part(f"layer {i}", size) for i, size in enumerate(sizes))
    devices = (*(Device(f"gpu {i}", room) for i, room in enumerate(rooms)), DISK)
    found = map_devices(parts, devices)
    assert sum(a.num_parts for a in found) == len(parts)
    assert sum(a.num_bytes for a in found) == sum(sizes)
    room_of = {device.name: device.free_bytes for device in devices}
    assert all(room_of[a.device] is None or a.num_bytes <= room_of[a.device] for a in found)  # type: ignore[operator]
    numbers = [devices.index(Device(a.device, room_of[a.device])) for a in found]
    assert numbers == sorted(set(numbers))
    firsts = [int(a.first.split()[1]) for a in found]
    lasts = [int(a.last.split()[1]) for a in found]
    assert firsts == [0, *(last + 1 for last in lasts[:-1])]
