"""The built-in model in several files, as large models lie on a hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from hearth.cli.settings import BUILT_IN_DIR
from hearth.models.safetensors_file import TensorEntry, read_header
from hearth.models.safetensors_writer import SafetensorsWriter, TensorSpec

INDEX = "model.safetensors.index.json"
Change = Callable[[str, bytes], bytes]


def shard_names(count: int) -> list[str]:
    """As transformers names them."""
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def sharded_model(count: int = 3, change: Change = lambda _, data: data) -> dict[str, bytes]:
    """Its files by name; `change` may give a tensor other bytes."""
    files = {p.name: p.read_bytes() for p in BUILT_IN_DIR.iterdir() if p.is_file()}
    data = files.pop("model.safetensors")
    entries = sorted(
        read_header(BUILT_IN_DIR / "model.safetensors").values(), key=lambda entry: entry.name
    )
    weight_map: dict[str, str] = {}
    for index, name in enumerate(shard_names(count)):
        part = entries[index::count]
        files[name] = _file_of(part, data, change)
        weight_map |= {entry.name: name for entry in part}
    files[INDEX] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return files


def _file_of(entries: list[TensorEntry], data: bytes, change: Change) -> bytes:
    specs = [TensorSpec(entry.name, entry.dtype, entry.shape) for entry in entries]
    with TemporaryDirectory() as directory:
        path = Path(directory) / "shard"
        with SafetensorsWriter(path, specs, {"format": "pt"}) as writer:
            for entry in entries:
                changed = change(entry.name, data[entry.begin : entry.end])
                writer.write(entry.name, np.frombuffer(changed, np.uint8))
        return path.read_bytes()
