"""What is wrong with a checkpoint is known from its headers, before it is loaded or downloaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.models.checkpoints import (
    LLAMA,
    Tensors,
    llama_tensors,
    write_config,
    write_safetensors,
    write_sharded,
)

from hearth.core.errors import WeightsError
from hearth.models.loader import load_model_spec
from hearth.models.safetensors_file import read_checkpoint
from hearth.models.stored_weights import StoredWeights, stored_weights


def stored(directory: Path, tensors: Tensors, **config: Any) -> StoredWeights:
    write_config(directory, LLAMA, **config)
    write_safetensors(directory / "model.safetensors", tensors)
    return stored_weights(load_model_spec(directory), read_checkpoint(directory))


def as_kind(tensors: Tensors, kind: type[np.generic]) -> Tensors:
    return {name: array.astype(kind) for name, array in tensors.items()}


def test_the_true_sizes_are_those_of_the_tensors(tmp_path: Path) -> None:
    tensors = llama_tensors()
    write_config(tmp_path, LLAMA)
    write_sharded(tmp_path, tensors)
    found = stored_weights(load_model_spec(tmp_path), read_checkpoint(tmp_path))
    num_bytes = sum(array.nbytes for array in tensors.values())
    assert found == StoredWeights(3, len(tensors), num_bytes, num_bytes, {"F32": num_bytes}, ())


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = llama_tensors()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(WeightsError, match=r"1 of .* missing .*model\.layers\.1\.mlp\.up_proj"):
        stored(tmp_path, tensors)


def test_a_wrong_shape_is_named_with_both(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"shape is \[10, 8\]; config.json makes it \[11, 8\]"):
        stored(tmp_path, llama_tensors(), vocab_size=11)


def test_what_is_quantized_is_refused_as_such(tmp_path: Path) -> None:
    codes = as_kind(llama_tensors(), np.int8)
    with pytest.raises(WeightsError, match="dtype is I8") as caught:
        stored(tmp_path, codes)
    assert "these are codes" in str(caught.value)


@pytest.mark.parametrize("suffix", ["qweight", "weight_packed", "blocks"])
def test_quantized_tensors_of_other_names_are_recognised(tmp_path: Path, suffix: str) -> None:
    tensors: Tensors = {}
    for name, array in llama_tensors().items():
        if "_proj." in name:
            base = name.removesuffix("weight")
            tensors[base + suffix] = array.astype(np.int8)
            tensors[base + "scales"] = array[:, :1].copy()
        else:
            tensors[name] = array
    with pytest.raises(WeightsError, match="tensors are missing") as caught:
        stored(tmp_path, tensors)
    assert "these are codes" in str(caught.value)


def test_tensors_that_nobody_reads_are_noted(tmp_path: Path) -> None:
    tensors = {**llama_tensors(), "extra": np.zeros(3, np.float32)}
    found = stored(tmp_path, tensors)
    assert found.num_bytes == found.used_bytes + 12
    assert found.notes == ("1 tensors of the checkpoint are not used: extra",)


@pytest.mark.parametrize(
    ("kind", "declared", "note"),
    [
        (np.float32, "bfloat16", "stored as F32 and served as bfloat16 .* they are rounded"),
        (np.float16, "bfloat16", "stored as F16 and served as bfloat16 .* they are rounded"),
        (
            np.float16,
            ...,
            "stored as F16 and served as float32 .* float16 keeps .* in half",
        ),
        (np.uint16, ..., "stored as BF16 and served as float32 .* exactly, in half"),
    ],
)
def test_another_precision_than_the_one_that_is_computed_with_is_noted(
    tmp_path: Path, kind: type[np.generic], declared: Any, note: str
) -> None:
    found = stored(tmp_path, as_kind(llama_tensors(), kind), dtype=declared)
    (said,) = found.notes
    assert re.search(note, said), said


def test_the_precision_that_most_bytes_have_is_the_checkpoints(tmp_path: Path) -> None:
    tensors = as_kind(llama_tensors(), np.uint16)
    tensors["model.norm.weight"] = llama_tensors()["model.norm.weight"]
    found = stored(tmp_path, tensors, dtype="bfloat16")
    assert found.notes == ()
    assert stored(tmp_path, as_kind(llama_tensors(), np.float16), dtype="float16").notes == ()
    assert list(found.dtypes) == ["BF16", "F32"]
