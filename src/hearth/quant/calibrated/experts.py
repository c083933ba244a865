"""A mixture's experts as linear layers of their own, so that each can be watched and replaced.

transformers holds all experts of a layer in two tensors, `gate_up_proj` [experts, 2 · intermediate,
hidden] and `down_proj` [experts, hidden, intermediate]; the arithmetic here is that of its plain
("eager") form.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

STACKED = ("gate_up_proj", "down_proj")


class Expert(nn.Module):
    """One gated MLP; gate before up, as rows of one matrix."""

    def __init__(self, hidden: int, intermediate: int, activation: Any) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(hidden, 2 * intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)
        self._activation = activation

    def forward(self, rows: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(rows).chunk(2, dim=-1)
        result: Tensor = self.down_proj(self._activation(gate) * up)
        return result


class SplitExperts(nn.ModuleList):
    """Takes the place of a module that `is_stacked`."""

    def __init__(self, stacked: nn.Module) -> None:
        count, twice, hidden = stacked.get_parameter("gate_up_proj").shape
        activation = stacked.act_fn
        with torch.device("meta"):
            super().__init__(Expert(hidden, twice // 2, activation) for _ in range(count))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """`hidden_states` [rows, hidden], the others [rows, experts a row]."""
        result = torch.zeros_like(hidden_states)
        for index, expert in enumerate(self):
            rows, places = torch.where(top_k_index == index)
            if len(rows):
                weights = top_k_weights[rows, places, None]
                result.index_add_(0, rows, expert(hidden_states[rows]) * weights)
        return result


def is_stacked(module: nn.Module) -> bool:
    """Whether a module holds experts of the form above, without biases."""
    parameters = dict(module.named_parameters(recurse=False))
    if set(parameters) != set(STACKED) or not hasattr(module, "act_fn"):
        return False
    gate_up, down = parameters["gate_up_proj"], parameters["down_proj"]
    return (
        gate_up.ndim == down.ndim == 3
        and gate_up.shape[0] == down.shape[0]
        and gate_up.shape[1] == 2 * down.shape[2]
        and gate_up.shape[2] == down.shape[1]
        and not getattr(module, "is_transposed", False)
    )


def split_experts(layer: nn.Module) -> list[str]:
    """Replaces all such modules of a layer on the meta device; their names."""
    names = [name for name, module in layer.named_modules() if name and is_stacked(module)]
    for name in names:
        parent, _, child = name.rpartition(".")
        owner = layer.get_submodule(parent)
        setattr(owner, child, SplitExperts(getattr(owner, child)))
    return names
