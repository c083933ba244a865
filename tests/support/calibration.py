"""Calibrated quantization of small models, and how much of their output it loses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tests.support.compressed import values_by_library

from hearth.core.config import CodesConfig
from hearth.quant.calibrated.run import Order, quantize_calibrated
from hearth.quant.calibrated.text import Calibration, sequences_of
from hearth.quant.checkpoint import Scheme, quantize_directory


@dataclass
class Notes:
    """An observer that remembers."""

    titles: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)

    def begin(self, title: str, total: float) -> None:
        self.titles.append(title)
        self.totals.append(total)
        self.done.append(0)

    def advance(self, amount: float) -> None:
        assert amount >= 0
        self.done[-1] += amount

    def note(self, text: str) -> None:
        self.notes.append(text)


def int4(group_size: int = 64, *, zero_points: bool = False) -> Scheme:
    """Four bits."""
    return Scheme("int4", CodesConfig(group_size=group_size, zero_points=zero_points))


def random_text(vocab_size: int, count: int = 24, length: int = 48, seed: int = 0) -> Calibration:
    """Tokens of which some come far more often than others."""
    random = np.random.default_rng(seed)
    ids = (vocab_size * random.random(count * length) ** 3).astype(int)
    return sequences_of([int(i) for i in ids], "random", count, length)


def quantize(
    source: Path, target: Path, method: str, scheme: Scheme, text: Calibration, *ignore: str
) -> Notes:
    """By any method; what was said."""
    notes = Notes()
    if method == "rtn":
        quantize_directory(source, target, scheme, lambda *_: None, ignore)
    else:
        quantize_calibrated(Order(source, target, scheme, method, text, ignore), notes)
    return notes


def values_of(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a quantized checkpoint in float32, codes decompressed by the library."""
    plain: dict[str, torch.Tensor] = {}
    for file in path.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            if tensor.dtype.is_floating_point and not name.endswith("weight_scale"):
                plain[name] = tensor.float()
    return {**plain, **values_by_library(path)}


def output_error(model: Any, path: Path, text: Calibration) -> float:
    """Squared error of the logits over a text, as a share of their variance."""
    tokens = [torch.from_numpy(row[None]) for row in text.tokens]
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        before = torch.cat([model(t).logits[0] for t in tokens])
        unknown = model.load_state_dict(values_of(path), strict=False).unexpected_keys
        after = torch.cat([model(t).logits[0] for t in tokens])
    model.load_state_dict(own)
    assert not unknown
    left = (after - before).square().sum(dtype=torch.float64)
    return float(left / (before - before.mean(0)).square().sum(dtype=torch.float64))
