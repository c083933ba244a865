"""What hearth makes of a checkpoint that others quantized, beside what it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tests.contract.plan_builder import PlanBuilder, teacher_forced
from tests.support.executors import Setup, build_executor
from tests.support.hf_models import ModelCase, build_model

from hearth.core.config import CodesConfig
from hearth.kernels.codes import dequantized
from hearth.kernels.cpu.weights import CpuWeights
from hearth.models.loader import LoadedSpec, load_model_spec
from hearth.models.weights import LoadReport, load_weights

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 264,
    "num_hidden_layers": 2,
}
LLAMA = ModelCase("llama", "llama", 3, SIZES)
GLM4 = ModelCase("glm4", "glm4", 5, SIZES)


def values_of(path: Path, **settings: Any) -> tuple[LoadedSpec, LoadReport, dict[str, Any]]:
    """Every stored matrix as the kernels have it, by its checkpoint tensor."""
    loaded = load_model_spec(path, **settings)
    weights = CpuWeights(loaded.program)
    report = load_weights(loaded, weights)
    found: dict[str, Any] = {}
    for slot in loaded.program.slots:
        if slot.stored is None or not slot.quant.bits:
            continue
        rows, row = dequantized(slot, weights.packed(slot)), 0
        for source in slot.sources:
            count = source.num_rows or slot.total_rows
            part = found.setdefault(source.tensor, {})
            part[source.first_row] = rows[row : row + count]
            row += count
    joined = {name: np.concatenate([p[k] for k in sorted(p)]) for name, p in found.items()}
    return loaded, report, joined


def logits_of(path: Path, executor: str, tokens: list[int]) -> NDArray[np.float32]:
    """At every position, rows in float32."""
    loaded = load_model_spec(path, "float32", codes=CodesConfig("float32"))
    built = build_executor(executor, Setup(loaded))
    (logits,) = teacher_forced(built, PlanBuilder(16, 256), [tokens], 17)
    built.close()
    return logits


def expected_logits(
    case: ModelCase, values: dict[str, torch.Tensor], tokens: list[int]
) -> NDArray[np.float32]:
    """Those of transformers with the dequantized matrices."""
    model = build_model(case)
    missing = model.load_state_dict(values, strict=False).unexpected_keys
    assert not missing, missing
    with torch.no_grad():
        return np.asarray(model(torch.tensor([tokens])).logits[0].numpy())


def relative_error(found: Any, expected: Any) -> float:
    """Of squares."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.square(found - expected).sum() / np.square(expected).sum())
