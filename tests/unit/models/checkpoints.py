"""Tiny model directories written by hand: no torch, no safetensors package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hearth.core.spec import DType, SlotKind, WeightSlot
from hearth.kernels.codes import row_values
from hearth.kernels.packing import CodeRows, HostTensor

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 8, 6, 2, 1, 4, 10

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "dtype": "float32",
}
GLM4: dict[str, Any] = {**LLAMA, "architectures": ["Glm4ForCausalLM"], "head_dim": HEAD_DIM}

Tensors = dict[str, NDArray[Any]]


def write_config(directory: Path, base: Mapping[str, Any], **changes: Any) -> Path:
    """Writes config.json; a change of `...` removes the key."""
    values = {key: value for key, value in {**base, **changes}.items() if value is not ...}
    (directory / "config.json").write_text(json.dumps(values))
    return directory


def llama_tensors(num_layers: int = 2, seed: int = 0) -> Tensors:
    """Every tensor of the LLAMA config, float32, random."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    for i in range(num_layers):
        base = f"model.layers.{i}"
        shapes |= {
            f"{base}.input_layernorm.weight": (HIDDEN,),
            f"{base}.post_attention_layernorm.weight": (HIDDEN,),
            f"{base}.self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
            f"{base}.self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{base}.self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{base}.self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            f"{base}.mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
            f"{base}.mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
            f"{base}.mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
        }
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Writes a file of float32, float16 or (as uint16) bfloat16 arrays."""
    names = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int8": "I8"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        raw = array.tobytes()
        header[name] = {
            "dtype": names[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    write_raw(path, header, data)


def write_raw(path: Path, header: object, data: bytes) -> None:
    """A file with any header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_sharded(directory: Path, tensors: Tensors, num_shards: int = 3) -> dict[str, str]:
    """Spreads the tensors over shards and writes the index; returns its weight_map."""
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        name = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = dict(list(tensors.items())[shard::num_shards])
        write_safetensors(directory / name, part)
        weight_map |= dict.fromkeys(part, name)
    write_index(directory, weight_map)
    return weight_map


def write_index(directory: Path, weight_map: object) -> None:
    """Writes model.safetensors.index.json."""
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


class RecordingSink:
    """A WeightSink that keeps every slot as float32, [rows, cols] or [rows]."""

    def __init__(self) -> None:
        self.slots: dict[str, NDArray[np.float32]] = {}
        self.filled: dict[str, int] = {}

    def put(self, slot: WeightSlot, first_row: int, tensor: HostTensor) -> None:
        shape = (slot.rows,) if slot.kind is SlotKind.VECTOR else (slot.total_rows, slot.cols)
        stored = self.slots.setdefault(slot.name, np.full(shape, np.nan, np.float32))
        stored[first_row : first_row + tensor.shape[0]] = as_float32(tensor)

    def put_codes(self, slot: WeightSlot, first_row: int, rows: CodeRows) -> None:
        shape = (slot.total_rows, slot.cols)
        stored = self.slots.setdefault(slot.name, np.full(shape, np.nan, np.float32))
        values = row_values(rows, slot.quant)[:, : slot.cols]
        stored[first_row : first_row + len(values)] = values

    def fill_random(self, slot: WeightSlot, seed: int) -> None:
        self.filled[slot.name] = seed


def as_float32(tensor: HostTensor) -> NDArray[np.float32]:
    """The elements of a host tensor, in its shape."""
    if tensor.dtype is DType.BFLOAT16:
        wide = tensor.data.view(np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(tensor.shape)
    kind = np.float32 if tensor.dtype is DType.FLOAT32 else np.float16
    return tensor.data.view(kind).astype(np.float32).reshape(tensor.shape)
