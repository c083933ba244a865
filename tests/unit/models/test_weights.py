"""Weights arrive where the slots want them, or the load fails with what is wrong and where."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.models.checkpoints import (
    LLAMA,
    RecordingSink,
    Tensors,
    llama_tensors,
    write_config,
    write_safetensors,
    write_sharded,
)

from hearth.core.errors import ConfigError, KernelError, WeightsError
from hearth.core.spec import WeightSlot
from hearth.kernels.packing import HostTensor
from hearth.models import weight_plan
from hearth.models.loader import load_model_spec
from hearth.models.weights import LoadReport, check_weights, load_weights


def load(directory: Path, **changes: Any) -> RecordingSink:
    sink = RecordingSink()
    load_weights(load_model_spec(write_config(directory, LLAMA, **changes)), sink)
    return sink


def refused(directory: Path, tensors: Tensors, **changes: Any) -> str:
    write_safetensors(directory / "model.safetensors", tensors)
    with pytest.raises(WeightsError) as caught:
        load(directory, **changes)
    return str(caught.value)


def check(sink: RecordingSink, tensors: Tensors) -> None:
    """Every slot holds its tensors, in order."""
    base = "model.layers.1.self_attn"
    parts = [tensors[f"{base}.{p}_proj.weight"] for p in "qkv"]
    assert np.array_equal(sink.slots["layers.1.qkv"], np.concatenate(parts))
    parts = [tensors[f"model.layers.0.mlp.{p}_proj.weight"] for p in ("gate", "up")]
    assert np.array_equal(sink.slots["layers.0.gate_up"], np.concatenate(parts))
    assert np.array_equal(sink.slots["final_norm"], tensors["model.norm.weight"])
    assert np.array_equal(sink.slots["head"], tensors["lm_head.weight"])
    assert not any(np.isnan(stored).any() for stored in sink.slots.values())


def test_a_single_file_fills_every_slot(tmp_path: Path) -> None:
    tensors = llama_tensors()
    write_safetensors(tmp_path / "model.safetensors", tensors)
    check(load(tmp_path), tensors)


def test_shards_fill_every_slot(tmp_path: Path) -> None:
    tensors = llama_tensors()
    write_sharded(tmp_path, tensors)
    check(load(tmp_path), tensors)


@pytest.mark.parametrize("piece_bytes", [1, 70, 100])
def test_tensors_arrive_in_pieces(
    tmp_path: Path, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_plan, "PIECE_BYTES", piece_bytes)
    tensors = llama_tensors()
    write_safetensors(tmp_path / "model.safetensors", tensors)
    check(load(tmp_path), tensors)


def test_elements_that_the_file_does_not_align_are_read(tmp_path: Path) -> None:
    tensors = llama_tensors()
    odd = {"a": np.zeros(3, np.int8), **tensors}
    write_safetensors(tmp_path / "model.safetensors", odd)
    check(load(tmp_path), tensors)


@pytest.mark.parametrize("kind", [np.float16, np.uint16])
def test_half_precision_is_handed_over_as_stored(tmp_path: Path, kind: type[Any]) -> None:
    stored, tensors = {}, {}
    for name, values in llama_tensors().items():
        if kind is np.float16:
            stored[name] = values.astype(np.float16)
            tensors[name] = stored[name].astype(np.float32)
        else:  # bfloat16: the upper half of a float32
            stored[name] = (values.view(np.uint32) >> 16).astype(np.uint16)
            tensors[name] = (stored[name].astype(np.uint32) << 16).view(np.float32)
    write_safetensors(tmp_path / "model.safetensors", stored)
    check(load(tmp_path), tensors)


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    tensors = llama_tensors()
    write_safetensors(tmp_path / "model.safetensors", tensors)
    seen: list[tuple[int, int]] = []
    loaded = load_model_spec(write_config(tmp_path, LLAMA))
    report = load_weights(
        loaded, RecordingSink(), on_progress=lambda done, total: seen.append((done, total))
    )
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    files = (tmp_path / "model.safetensors",)
    assert report == LoadReport(total, len(tensors), files=files) == check_weights(loaded)


def test_dummy_fills_every_slot_without_files(tmp_path: Path) -> None:
    loaded = load_model_spec(write_config(tmp_path, LLAMA))
    sink = RecordingSink()
    load_weights(loaded, sink, "dummy", seed=7)
    assert set(sink.filled) == {s.name for s in loaded.program.slots}
    assert len(set(sink.filled.values())) == len(sink.filled)
    again = RecordingSink()
    load_weights(loaded, again, "dummy", seed=7)
    assert again.filled == sink.filled


def test_an_unknown_load_format_is_refused(tmp_path: Path) -> None:
    loaded = load_model_spec(write_config(tmp_path, LLAMA))
    with pytest.raises(ConfigError) as caught:
        load_weights(loaded, RecordingSink(), "gguf")
    assert str(caught.value) == "--load-format is 'gguf'; permitted: auto, safetensors, dummy"


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    tensors = llama_tensors()
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["model.norm.weight"]
    assert refused(tmp_path, tensors) == (
        "2 of 21 tensors are missing from the checkpoint, which holds 19: "
        "model.layers.1.mlp.up_proj.weight, model.norm.weight"
    )


def test_a_missing_head_suggests_tying(tmp_path: Path) -> None:
    tensors = llama_tensors()
    del tensors["lm_head.weight"]
    assert "set tie_word_embeddings to true" in refused(tmp_path, tensors)


def test_another_prefix_is_pointed_out(tmp_path: Path) -> None:
    tensors = {f"language.{name}": tensor for name, tensor in llama_tensors().items()}
    message = refused(tmp_path, tensors)
    assert "the checkpoint has language.model.embed_tokens.weight" in message


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.k_proj.weight", (8, 8)),
        ("model.layers.0.self_attn.k_proj.weight", (4, 7)),
        ("model.layers.0.self_attn.k_proj.weight", (32,)),
        ("model.norm.weight", (8, 1)),
    ],
)
def test_a_wrong_shape_is_refused(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    expected = list(llama_tensors()[name].shape)
    message = refused(tmp_path, {**llama_tensors(), name: np.zeros(shape, np.float32)})
    assert message == (
        f"model.safetensors: tensor {name}: shape is {list(shape)}; config.json makes it {expected}"
    )


def test_a_wrong_dtype_is_refused(tmp_path: Path) -> None:
    wrong = {**llama_tensors(), "lm_head.weight": np.zeros((10, 8), np.int8)}
    assert refused(tmp_path, wrong).startswith(
        "model.safetensors: tensor lm_head.weight: dtype is I8; permitted: F32, BF16, F16"
    )


def test_unexpected_tensors_are_warned_about(tmp_path: Path) -> None:
    extra = {
        "model.layers.0.self_attn.q_proj.bias": np.zeros(8, np.float32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(2, np.float32),
    }
    write_safetensors(tmp_path / "model.safetensors", {**llama_tensors(), **extra})
    report = load_weights(load_model_spec(write_config(tmp_path, LLAMA)), RecordingSink())
    assert report.warnings == (
        "1 tensors of the checkpoint are not used: model.layers.0.self_attn.q_proj.bias",
    )


def test_a_tied_head_may_be_stored_twice(tmp_path: Path) -> None:
    tensors = llama_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    write_safetensors(tmp_path / "model.safetensors", tensors)
    loaded = load_model_spec(write_config(tmp_path, LLAMA, tie_word_embeddings=True))
    sink = RecordingSink()
    assert load_weights(loaded, sink).warnings == ()
    assert "head" not in sink.slots


def test_a_tied_head_that_differs_is_refused(tmp_path: Path) -> None:
    message = refused(tmp_path, llama_tensors(), tie_word_embeddings=True)
    assert message == (
        "model.safetensors: tensor lm_head.weight differs from model.embed_tokens.weight, but "
        "tie_word_embeddings is true (set tie_word_embeddings to false in config.json)"
    )


class BrokenSink(RecordingSink):
    """Refuses one slot."""

    def put(self, slot: WeightSlot, first_row: int, tensor: HostTensor) -> None:
        if slot.name == "layers.1.down":
            raise KernelError("cannot convert")
        super().put(slot, first_row, tensor)


def test_a_failing_sink_ends_the_load_and_its_threads(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", llama_tensors())
    with pytest.raises(KernelError, match="cannot convert"):
        load_weights(load_model_spec(write_config(tmp_path, LLAMA)), BrokenSink())
    assert not [t for t in threading.enumerate() if t.name.startswith("hearth-load")]


def test_mapped_pages_are_given_back(tmp_path: Path) -> None:
    """The resident part of the mapping stays far below the file (64 MiB here)."""
    tensors = llama_tensors()
    vocabulary = 2 << 20
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = np.ones((vocabulary, 8), np.float16)
    write_safetensors(tmp_path / "model.safetensors", tensors)

    class Watching(RecordingSink):
        largest = 0

        def put(self, slot: WeightSlot, first_row: int, tensor: HostTensor) -> None:
            tensor.data.sum()
            self.largest = max(self.largest, mapped_bytes())

    sink = Watching()
    loaded = load_model_spec(write_config(tmp_path, LLAMA, vocab_size=vocabulary))
    before = mapped_bytes()
    load_weights(loaded, sink)
    # Two large tensors may be under way at once, one piece each.
    assert sink.largest - before <= 2 * weight_plan.PIECE_BYTES + (4 << 20)
    assert mapped_bytes() - before < 4 << 20


def mapped_bytes() -> int:
    """Resident file-backed memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kinds = [line.split() for line in lines if line.startswith(("RssFile", "RssShmem"))]
    return sum(int(kind[1]) * 1024 for kind in kinds)
