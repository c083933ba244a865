"""GPTQ's and AWQ's layouts written plainly, from their description: what reading is held to.

Words are filled code by code, so that nothing is shared with the code under test.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
Tensors = dict[str, torch.Tensor]
Pack = Callable[[NDArray[np.float32]], tuple[Tensors, NDArray[np.float32]]]


@dataclass(frozen=True)
class Codes:
    """Of a matrix [out, in]: codes [in, out], scales and zero points [groups, out], groups [in]."""

    q: NDArray[np.int64]
    scales: NDArray[np.float16]
    zeros: NDArray[np.int64]
    groups: NDArray[np.int64]

    def values(self) -> NDArray[np.float32]:
        """What they stand for, [out, in]."""
        distance = (self.q - self.zeros[self.groups]).astype(np.float32)
        return (distance * self.scales[self.groups].astype(np.float32)).T


def quantized(
    weight: NDArray[np.float32], bits: int, groups: NDArray[np.int64], *, symmetric: bool
) -> Codes:
    """To nearest; `groups` names the group of each column."""
    columns = weight.T  # [in, out]
    count, top = int(groups.max()) + 1, (1 << bits) - 1
    scales = np.zeros((count, len(weight)), np.float16)
    zeros = np.zeros(scales.shape, np.int64)
    for group in range(count):
        rows = columns[groups == group]
        low, high = np.minimum(rows.min(0), 0), np.maximum(rows.max(0), 0)
        if symmetric:
            scales[group] = 2 * np.maximum(-low, high) / top
            zeros[group] = (top + 1) // 2
        else:
            scales[group] = (high - low) / top
            zeros[group] = np.clip(np.rint(-low / scales[group].astype(np.float32)), 0, top)
    q = np.rint(columns / scales[groups].astype(np.float32)) + zeros[groups]
    return Codes(np.clip(q, 0, top).astype(np.int64), scales, zeros, groups)


def packed(codes: NDArray[np.int64], bits: int, order: tuple[int, ...] | None = None) -> Any:
    """[rows, n] to int32 [rows, n / per word]: place i of a word takes its code `order[i]`."""
    per_word = 32 // bits
    order = order or tuple(range(per_word))
    words = np.zeros((codes.shape[0], codes.shape[1] // per_word), np.int64)
    for word in range(words.shape[1]):
        for place, source in enumerate(order):
            words[:, word] |= codes[:, word * per_word + source] << (place * bits)
    return torch.from_numpy((words & 0xFFFFFFFF).astype(np.uint32).view(np.int32))


def gptq(
    bits: int = 4,
    group_size: int = 64,
    *,
    symmetric: bool = True,
    version: int = 1,
    ordered: bool = False,
) -> Pack:
    """A packer of one matrix; `ordered`: its columns belong to groups in a random order."""

    def pack(weight: NDArray[np.float32]) -> tuple[Tensors, NDArray[np.float32]]:
        cols = weight.shape[1]
        groups = np.arange(cols) // (group_size if group_size > 0 else cols)
        if ordered:
            groups = np.random.default_rng(cols).permutation(groups)
        codes = quantized(weight, bits, groups, symmetric=symmetric)
        stored = codes.zeros - (1 if version == 1 else 0) & (1 << bits) - 1
        tensors = {
            "qweight": packed(codes.q.T, bits).T.contiguous(),
            "qzeros": packed(stored, bits),
            "scales": torch.from_numpy(codes.scales),
            "g_idx": torch.from_numpy(groups.astype(np.int32)),
        }
        return tensors, codes.values()

    return pack


def awq(group_size: int = 64) -> Pack:
    """A packer of one matrix, with zero points."""

    def pack(weight: NDArray[np.float32]) -> tuple[Tensors, NDArray[np.float32]]:
        cols = weight.shape[1]
        groups = np.arange(cols) // (group_size if group_size > 0 else cols)
        codes = quantized(weight, 4, groups, symmetric=False)
        tensors = {
            "qweight": packed(codes.q, 4, AWQ_ORDER),
            "qzeros": packed(codes.zeros, 4, AWQ_ORDER),
            "scales": torch.from_numpy(codes.scales),
        }
        return tensors, codes.values()

    return pack


NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


def four_bits(kind: str = "nf4", block: int = 64, *, nested: bool = False) -> Pack:
    """bitsandbytes' 4 bits: the first of two codes in the high nibble, blocks along the rows."""

    def pack(weight: NDArray[np.float32]) -> tuple[Tensors, NDArray[np.float32]]:
        table = np.array(NF4, np.float32)
        flat = weight.reshape(-1)
        absmax = np.array(
            [np.abs(flat[i : i + block]).max() for i in range(0, len(flat), block)], np.float32
        )
        state = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16",
                 "shape": list(weight.shape)}  # fmt: skip
        tensors: Tensors = {".absmax": torch.from_numpy(absmax)}
        if nested:
            offset = float(absmax.mean())
            steps = np.linspace(-1, 1, 256, dtype=np.float32)
            outer = np.array(
                [np.abs(absmax[i : i + 256] - offset).max() for i in range(0, len(absmax), 256)],
                np.float32,
            )
            places = [
                int(np.abs(steps - (value - offset) / outer[i // 256]).argmin())
                for i, value in enumerate(absmax)
            ]
            absmax = steps[places] * outer[np.arange(len(places)) // 256] + np.float32(offset)
            state |= {"nested_blocksize": 256, "nested_offset": offset, "nested_dtype": "float32"}
            tensors = {
                ".absmax": torch.tensor(places, dtype=torch.uint8),
                ".nested_absmax": torch.from_numpy(outer),
                ".nested_quant_map": torch.from_numpy(steps),
            }
        scales = absmax[np.arange(len(flat)) // block]
        codes = np.abs(flat[:, None] / scales[:, None] - table).argmin(1)
        text = np.frombuffer(json.dumps(state).encode(), np.uint8).copy()
        tensors |= {
            "": torch.tensor([a << 4 | b for a, b in zip(codes[::2], codes[1::2])],
                             dtype=torch.uint8)[:, None],
            ".quant_map": torch.from_numpy(table),
            f".quant_state.bitsandbytes__{kind}": torch.from_numpy(text),
        }  # fmt: skip
        return tensors, (table[codes] * scales).reshape(weight.shape)

    return pack


def int8_rows(weight: NDArray[np.float32]) -> tuple[Tensors, NDArray[np.float32]]:
    """bitsandbytes' INT8: a row's largest value is 127."""
    largest = np.abs(weight).max(1)
    codes = np.rint(weight * 127 / largest[:, None]).astype(np.int8)
    tensors = {
        "": torch.from_numpy(codes),
        "SCB": torch.from_numpy(largest),
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return tensors, codes.astype(np.float32) * (largest / np.float32(127))[:, None]


def save_packed(model: Any, path: Path, pack: Pack, section: dict[str, Any]) -> Tensors:
    """Saves a transformers model with its layers' matrices packed; their values by name."""
    path.mkdir(parents=True, exist_ok=True)
    linear = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name
    }
    tensors: Tensors = {}
    values: Tensors = {}
    for name, tensor in model.state_dict().items():
        if name not in linear:
            tensors[name] = tensor.contiguous().clone()
            continue
        parts, found = pack(tensor.float().numpy())
        module = name.removesuffix(".weight")
        for part, held in parts.items():
            key = f"{name}{part}" if part.startswith((".", "_")) else f"{module}.{part}"
            tensors[key if part else name] = held.contiguous().clone()
        values[name] = torch.from_numpy(np.ascontiguousarray(found))
    if getattr(model.config, "tie_word_embeddings", False):
        tensors.pop("lm_head.weight", None)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    config["quantization_config"] = section
    (path / "config.json").write_text(json.dumps(config, default=str))
    return values
