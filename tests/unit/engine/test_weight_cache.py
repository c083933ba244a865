"""Packed weights come from disk when, and only when, they are what packing would give."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.unit.kernels.programs import ISAS
from tests.unit.models.checkpoints import (
    LLAMA,
    Tensors,
    llama_tensors,
    write_config,
    write_safetensors,
    write_sharded,
)

from hearth.core.config import DEFAULT_CODES, CodesConfig, WeightCacheConfig
from hearth.core.errors import KernelError, WeightsError
from hearth.core.spec import DType, QuantSpec, SlotKind, WeightSlot, WeightSource
from hearth.engine import weight_cache
from hearth.engine.weight_cache import CpuLoad, cache_key, default_directory, load_cpu_weights
from hearth.host.disk import DiskFacts
from hearth.kernels.codes import dequantized
from hearth.kernels.cpu import pages
from hearth.kernels.packing import PANEL_COLUMNS, WeightSink
from hearth.models import weights
from hearth.models.loader import LoadedSpec, load_model_spec
from hearth.models.weight_identity import FileIdentity
from hearth.models.weights import LoadReport, load_weights

GIB = 1 << 30


class Starts:
    """Starts on one model and one cache; counts how often weights were packed."""

    def __init__(self, directory: Path) -> None:
        self.model, self.cache = directory / "model", directory / "cache"
        self.model.mkdir()
        self.config = WeightCacheConfig(str(self.cache), GIB, min_bytes=0)
        self.num_packed = 0
        self.write(llama_tensors())

    def write(self, tensors: Tensors) -> None:
        write_config(self.model, LLAMA)
        write_safetensors(self.model / "model.safetensors", tensors)

    def start(
        self,
        dtype: str = "auto",
        quantize: str = "none",
        isa: str = "auto",
        codes: CodesConfig = DEFAULT_CODES,
        **changes: object,
    ) -> CpuLoad:
        loaded = load_model_spec(self.model, dtype, quantize=quantize, codes=codes)

        def fill(sink: WeightSink) -> LoadReport:
            self.num_packed += 1
            return load_weights(loaded, sink)

        config = replace(self.config, **changes)  # type: ignore[arg-type]  # fields by name
        found = load_cpu_weights(loaded, config, fill, lambda done, total: None, isa)
        for thread in threading.enumerate():
            if thread.name == "hearth-weight-cache":
                thread.join()
        assert all_bytes(found, loaded) == packed_anew(loaded, isa)
        return found

    def files(self) -> list[str]:
        return sorted(path.name for path in self.cache.iterdir())


def all_bytes(load: CpuLoad, loaded: LoadedSpec) -> bytes:
    return b"".join(load.weights.packed(slot).tobytes() for slot in loaded.program.slots)


def packed_anew(loaded: LoadedSpec, isa: str) -> bytes:
    def fill(sink: WeightSink) -> LoadReport:
        return load_weights(loaded, sink)

    return all_bytes(weight_cache.pack_to_memory(loaded.program, fill, "", isa), loaded)


@pytest.fixture
def starts(tmp_path: Path) -> Starts:
    return Starts(tmp_path)


def test_the_second_start_packs_nothing(starts: Starts) -> None:
    first = starts.start()
    assert first.choice.value.startswith("written")
    second = starts.start()
    assert second.choice.value.startswith("mapped")
    assert starts.num_packed == 1
    assert starts.files()[0] in second.choice.reason
    assert not first.warnings
    assert not second.warnings


def exact_losses(load: CpuLoad, loaded: LoadedSpec, plain: CpuLoad) -> dict[str, float]:
    """By bits, over all rows, of what lies in memory."""
    exact = {slot.name: slot for slot in plain_slots(loaded)}
    changed, total = dict[str, float](), dict[str, float]()
    for slot in loaded.program.slots:
        if slot.quant.bits:
            after = dequantized(slot, load.weights.packed(slot)).astype(np.float64)
            before = plain_values(exact[slot.name], plain).astype(np.float64)
            name = f"int{slot.quant.bits}"
            changed[name] = changed.get(name, 0) + float(((after - before) ** 2).sum())
            total[name] = total.get(name, 0) + float((before**2).sum())
    return {name: changed[name] / total[name] for name in sorted(changed)}


def plain_slots(loaded: LoadedSpec) -> tuple[WeightSlot, ...]:
    return load_model_spec(loaded.path, "float32").program.slots


def plain_values(slot: WeightSlot, load: CpuLoad) -> NDArray[np.float32]:
    """A float32 matrix out of its panels of 64 rows, or its table."""
    raw = load.weights.packed(slot).view(np.float32)
    if slot.kind is SlotKind.TABLE:
        return raw.reshape(slot.total_rows, -1)[:, : slot.cols]
    panels = raw.reshape(-1, slot.cols, PANEL_COLUMNS).transpose(0, 2, 1)
    return panels.reshape(-1, slot.cols)[: slot.total_rows]


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_what_codes_lose_is_known_when_they_are_made_and_when_they_are_mapped(
    starts: Starts, quantize: str
) -> None:
    plain = starts.start("float32")
    assert plain.rounding is None
    first = starts.start(quantize=quantize)
    loaded = load_model_spec(starts.model, quantize=quantize)
    assert first.rounding is not None
    exact = exact_losses(first, loaded, plain)
    assert list(first.rounding.errors) == list(exact)
    for name, error in exact.items():
        assert first.rounding.errors[name] == pytest.approx(error, rel=0.25)  # of few rows
    assert first.rounding.worst in {slot.name for slot in loaded.program.slots}
    assert first.rounding.worst_error >= max(first.rounding.errors.values())
    second = starts.start(quantize=quantize)
    assert second.choice.value.startswith("mapped")
    assert second.rounding == first.rounding
    (note,) = [name for name in starts.files() if name.endswith(".note")]
    (starts.cache / note).write_bytes(b"{")
    assert starts.start(quantize=quantize).rounding is None


def test_codes_of_another_instruction_set_are_packed_anew(starts: Starts) -> None:
    for isa in (*ISAS, *ISAS):
        starts.start(quantize="int4", isa=isa)
    assert starts.num_packed == len(ISAS)
    assert len(starts.files()) >= len(ISAS)
    starts.start(quantize="int4")
    assert starts.num_packed == len(ISAS), "the best one is what auto takes"


def test_codes_are_the_same_for_exact_and_rounded_activations(starts: Starts) -> None:
    for activations in ("int8", "float32", "auto"):
        starts.start(quantize="int4", codes=CodesConfig(activations))
    assert starts.num_packed == 1
    starts.start(quantize="int4", codes=CodesConfig(zero_points=True))
    assert starts.num_packed == 2


def test_fp8_and_int8_of_the_same_size_have_files_of_their_own(starts: Starts) -> None:
    for scheme in ("int8", "fp8", "int8", "fp8"):
        found = starts.start(quantize=scheme)
    assert found.choice.value.startswith("mapped")
    assert starts.num_packed == 2
    assert len(starts.files()) >= 2


def test_a_hit_warns_of_the_same_as_a_miss(starts: Starts) -> None:
    starts.write({**llama_tensors(), "odd": np.zeros(3, np.float32)})
    first, second = starts.start(), starts.start()
    assert starts.num_packed == 1
    assert first.warnings == second.warnings
    assert "odd" in first.warnings[0]


def test_shards_count_one_by_one(starts: Starts) -> None:
    (starts.model / "model.safetensors").unlink()
    write_sharded(starts.model, llama_tensors())
    starts.start()
    starts.start()
    assert starts.num_packed == 1
    shard = starts.model / "model-00002-of-00003.safetensors"
    os.utime(shard, ns=(0, 0))
    starts.start()
    assert starts.num_packed == 2


def test_other_weights_under_the_same_name_are_packed_anew(starts: Starts) -> None:
    starts.start()
    path = starts.model / "model.safetensors"
    before = path.stat()
    starts.write(llama_tensors(seed=1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    starts.start()  # compares every byte with what packing gives
    assert starts.num_packed == 2
    assert len(starts.files()) == 2


def test_another_precision_is_another_file(starts: Starts) -> None:
    starts.start()
    starts.start("bfloat16")
    assert starts.num_packed == 2
    starts.start()
    starts.start("bfloat16")
    assert starts.num_packed == 2


def test_every_part_of_the_key_counts(starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = load_model_spec(starts.model).program.slots
    identity = FileIdentity(1, 2, 3, 4, "5")
    first = slots[0]
    variants = [
        cache_key(slots, (identity,), "avx512"),
        cache_key(slots, (identity,), "avx2"),
        cache_key(slots, (identity, identity), "avx512"),
        cache_key(slots[1:], (identity,), "avx512"),
    ]
    for name in ("inode", "num_bytes", "modified_ns", "changed_ns"):
        changed = replace(identity, **{name: 9})  # type: ignore[arg-type]  # fields by name
        variants.append(cache_key(slots, (changed,), "avx512"))
    variants.append(cache_key(slots, (replace(identity, header_hash="9"),), "avx512"))
    others = (
        replace(first, rows=first.rows + 1),
        replace(first, offset=1.0),
        replace(first, quant=QuantSpec(DType.FLOAT32, 4, 128)),
        replace(first, quant=QuantSpec(DType.FLOAT32, 4, 128, symmetric=False)),
        replace(first, sources=(WeightSource("other", 0),)),
    )
    variants += [cache_key((other, *slots[1:]), (identity,), "avx512") for other in others]
    monkeypatch.setattr(weight_cache, "PACKING_VERSION", 999)
    variants.append(cache_key(slots, (identity,), "avx512"))
    assert len(set(variants)) == len(variants)


def test_files_that_change_while_they_are_packed_are_not_kept(
    starts: Starts, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = weights._pack_task

    def touch_and_pack(*arguments: object) -> object:
        os.utime(starts.model / "model.safetensors")
        return original(*arguments)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(weights, "_pack_task", touch_and_pack)
    with caplog.at_level(logging.WARNING):
        starts.start()
    assert starts.files() == []
    assert "weight_cache_discarded" in caplog.text


def test_a_damaged_file_is_packed_anew_with_a_warning(starts: Starts) -> None:
    starts.start()
    (name,) = starts.files()
    (starts.cache / name).write_bytes(b"not a cache")
    second = starts.start()
    assert "damaged" in second.warnings[0]
    assert second.choice.value.startswith("written")
    assert starts.start().choice.value.startswith("mapped")


def test_a_changed_byte_is_found_when_asked(starts: Starts) -> None:
    starts.start()
    (name,) = starts.files()
    content = bytearray((starts.cache / name).read_bytes())
    content[-4096] ^= 1
    (starts.cache / name).write_bytes(content)
    found = starts.start(verify=True)
    assert "1 tensors have changed" in found.warnings[0]
    assert starts.num_packed == 2
    assert not starts.start(verify=True).warnings


@pytest.mark.parametrize("verify", [False, True])
def test_a_file_that_the_disk_cannot_read_is_packed_anew(
    starts: Starts, monkeypatch: pytest.MonkeyPatch, verify: bool
) -> None:
    starts.start()

    def fail(address: int, num_bytes: int, on_progress: object) -> None:
        raise OSError(errno.EFAULT, "a page cannot be read")

    with monkeypatch.context() as broken:
        broken.setattr(pages, "read_in", fail)
        second = starts.start(verify=verify)
    assert "a page cannot be read" in second.warnings[0]
    assert second.choice.value.startswith("written")
    assert starts.start(verify=True).choice.value.startswith("mapped")


def test_a_directory_that_cannot_be_written_is_a_warning(starts: Starts) -> None:
    starts.cache.write_bytes(b"a file where the directory should be")
    found = starts.start()
    assert found.choice.value == "off"
    assert "not kept for the next start" in found.warnings[0]


def test_a_disk_that_fails_later_leaves_the_weights_in_memory(
    starts: Starts, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    found = starts.start()  # its bytes are compared after the thread has moved them
    assert "weight_cache_failed" in caplog.text
    assert starts.files() == []
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert str(starts.cache) not in maps
    assert found.weights.num_bytes > 0


def test_no_memory_for_the_weights_of_a_failed_disk_is_said(
    starts: Starts, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def refuse(*args: object) -> None:
        raise KernelError("no memory for a copy")

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(pages, "replace_by_copy", refuse)
    starts.start()
    assert "no memory for a copy; restart with --weight-cache-bytes 0" in caplog.text


def test_weights_that_cannot_be_packed_leave_no_file(starts: Starts) -> None:
    tensors = llama_tensors()
    starts.write(tensors)
    loaded = load_model_spec(starts.model)

    def fill(sink: WeightSink) -> LoadReport:
        raise WeightsError("broken")

    with pytest.raises(WeightsError, match="broken"):
        load_cpu_weights(loaded, starts.config, fill, lambda done, total: None)
    assert starts.files() == []


def test_a_second_server_beside_the_first_packs_for_itself(starts: Starts) -> None:
    loaded = load_model_spec(starts.model)
    inner: list[CpuLoad] = []

    def fill(sink: WeightSink) -> LoadReport:
        inner.append(starts.start())
        return load_weights(loaded, sink)

    outer = load_cpu_weights(loaded, starts.config, fill, lambda done, total: None)
    assert outer.choice.value.startswith("written")
    assert inner[0].choice.value == "off"
    assert "another server" in inner[0].choice.reason
    assert not inner[0].warnings


def test_small_models_and_a_budget_of_nothing_make_no_file(starts: Starts) -> None:
    small = starts.start(min_bytes=GIB)
    off = starts.start(max_bytes=0)
    assert (small.choice.value, off.choice.value) == ("off", "off")
    assert "takes no time" in small.choice.reason
    assert not starts.cache.exists()


@pytest.mark.parametrize(
    ("disk", "reason"),
    [
        (DiskFacts("nfs4", GIB), "nfs4"),
        (DiskFacts("tmpfs", GIB), "in memory"),
        (DiskFacts("ext4", 1000), "the budget is 250 B"),
    ],
)
def test_a_disk_that_does_not_suit_is_named(
    starts: Starts, disk: DiskFacts, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_cache, "read_disk", lambda directory: disk)
    found = starts.start(max_bytes=None)
    assert found.choice.value == "off"
    assert reason in found.choice.reason


def test_a_home_that_is_not_known_turns_the_cache_off(starts: Starts) -> None:
    load = starts.start(directory="~nobody-has-this-name/cache")
    assert load.choice.value == "off"
    assert "not known" in load.choice.reason


def test_tensors_that_move_to_another_shard_are_packed_anew(starts: Starts) -> None:
    """Two shards may both hold a tensor: the index alone says which one is served."""
    tensors = llama_tensors()
    name = next(iter(tensors))
    write_safetensors(starts.model / "a.safetensors", tensors)
    write_safetensors(starts.model / "b.safetensors", {**tensors, name: tensors[name] * 2})
    (starts.model / "model.safetensors").unlink()
    index = starts.model / "model.safetensors.index.json"
    last = next(reversed(tensors))
    for shard in ("a", "b"):
        weight_map = dict.fromkeys(tensors, "a.safetensors") | {last: "b.safetensors"}
        weight_map[name] = f"{shard}.safetensors"
        index.write_text(json.dumps({"weight_map": weight_map}))
        starts.start()
    assert starts.num_packed == 2


def test_the_default_directory_follows_the_xdg_specification() -> None:
    home = {"HOME": "/home/me"}
    assert default_directory(home) == Path("/home/me/.cache/hearth/weights")
    assert default_directory({**home, "XDG_CACHE_HOME": "/x"}) == Path("/x/hearth/weights")
    assert default_directory({**home, "XDG_CACHE_HOME": "rel"}) == default_directory(home)
    assert default_directory({}) is None
