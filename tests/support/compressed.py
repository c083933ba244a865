"""Checkpoints that the library compressed-tensors itself writes: what reading is held to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.model_compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    apply_quantization_config,
)
from compressed_tensors.quantization.utils import calculate_qparams
from compressed_tensors.utils.match import match_targets
from safetensors.torch import load_file

W8A8_INPUT = {"num_bits": 8, "strategy": "token", "dynamic": True, "symmetric": True}


@dataclass(frozen=True)
class Form:
    """One group of modules: `weights` and `inputs` as the library's arguments."""

    targets: tuple[str, ...]
    weights: dict[str, Any]
    inputs: dict[str, Any] | None = None


def save_compressed(model: Any, path: Path, forms: tuple[Form, ...], ignore: list[str]) -> None:
    """Quantizes a transformers model by the library, to nearest, and saves it."""
    groups = {
        f"group_{i}": QuantizationScheme(
            targets=list(form.targets),
            weights=QuantizationArgs(**form.weights),
            input_activations=QuantizationArgs(**form.inputs) if form.inputs else None,
        )
        for i, form in enumerate(forms)
    }
    config = QuantizationConfig(config_groups=groups, ignore=ignore)
    apply_quantization_config(model, config)
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None and scheme.weights is not None:
            _calibrate(module, scheme.weights)
            module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(path)
    compressor.update_config(str(path))


def _calibrate(module: Any, args: QuantizationArgs) -> None:
    """Scales and zero points from the least and the greatest value of each group."""
    weight = module.weight.data
    low, high = _grouped(weight, args)
    scale, zero = calculate_qparams(low, high, args)
    module.weight_scale.data = scale.to(module.weight_scale.dtype)
    if hasattr(module, "weight_zero_point"):
        module.weight_zero_point.data = zero.to(module.weight_zero_point.dtype)


def _grouped(weight: torch.Tensor, args: QuantizationArgs) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the greatest value of each group, in the shape of the scales."""
    if args.strategy == "tensor":
        return weight.amin().reshape(1), weight.amax().reshape(1)
    if args.strategy == "block":
        rows, cols = args.block_structure
        blocks = weight.reshape(weight.shape[0] // rows, rows, weight.shape[1] // cols, cols)
        return blocks.amin((1, 3)), blocks.amax((1, 3))
    grouped = weight.reshape(weight.shape[0], -1, args.group_size or weight.shape[1])
    return grouped.amin(-1), grouped.amax(-1)


def values_by_transformers(path: Path, cls: Any) -> dict[str, torch.Tensor]:
    """What transformers makes of a compressed checkpoint: every tensor, decompressed.

    In float32, where the product of a code and its scale is exact. Version 5.23 loses packed zero
    points, those of its own files too: of such `values_by_library` tells.
    """
    model = cls.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():  # the first forward pass decompresses
        model(torch.zeros(1, 1, dtype=torch.long))
    return dict(model.state_dict())


def values_by_library(path: Path) -> dict[str, torch.Tensor]:
    """Every matrix that a checkpoint has as codes, decompressed by the library, in float32."""
    tensors: dict[str, torch.Tensor] = {}
    for file in path.glob("*.safetensors"):
        tensors |= load_file(file)
    section = json.loads((path / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(
        {k: v for k, v in section.items() if k in QuantizationConfig.model_fields}
    )
    found = {}
    for name in tensors:
        module = name.removesuffix(".weight_scale")
        if module != name:
            kind = torch.nn.Embedding if "embed" in module else torch.nn.Linear
            held = {
                k.removeprefix(f"{module}."): v
                for k, v in tensors.items()
                if k.startswith(f"{module}.")
            }
            held["weight_scale"] = held["weight_scale"].float()
            found[f"{module}.weight"] = _decompressed(config, module, kind, held)
    return found


def _decompressed(
    config: QuantizationConfig, module: str, kind: Any, held: dict[str, torch.Tensor]
) -> torch.Tensor:
    targets = {t: group for group in config.config_groups.values() for t in group.targets}
    (best, *_) = match_targets(module, kind(1, 1), targets)
    scheme = targets[best]
    compressor = BaseCompressor.get_value_from_registry(scheme.format or config.format)
    values: torch.Tensor = compressor.decompress(held, scheme)["weight"]
    return values
