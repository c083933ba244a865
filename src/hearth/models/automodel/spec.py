"""What the fallback knows of a model before its weights: plain data, no torch.

`AutoModelSpec` offers the same attributes as `models.loader.LoadedSpec`, so that the start-up
plans, resolves and reports both in the same way.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hearth.core.memory import MemoryItem
from hearth.core.program import KvGroupSpec, StepProgram
from hearth.core.spec import DType
from hearth.models.generation_config import GenerationDefaults


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """One attention module of the model, as it called our attention in a traced pass.

    `module`: its path in the model. `window` 0: full attention. Values may be narrower than keys.
    """

    module: str
    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int = 0

    @property
    def kv_shape(self) -> tuple[int, int, int]:
        """KV heads, width of a stored head, window: layers that share it share block tables."""
        return self.num_kv_heads, max(self.key_dim, self.value_dim), self.window


@dataclass(frozen=True, slots=True)
class AutoModelSpec:
    """A model directory for transformers, read except for its weights.

    `layers` are as traced, `window` (0: none) is that of --window. `config`: transformers'
    configuration object. `fixed_memory`: bytes that do not depend on the context.
    """

    path: Path
    architecture: str
    max_position_embeddings: int
    vocab_size: int
    layers: tuple[AttentionLayer, ...]
    window: int
    generation: GenerationDefaults
    dtype: DType
    dtype_reason: str
    device: str  # cpu, cuda
    config: Any
    selects_logits: bool  # the model computes the logits of the wanted rows only
    fixed_memory: tuple[MemoryItem, ...]
    warnings: tuple[str, ...] = ()

    @property
    def served_layers(self) -> tuple[AttentionLayer, ...]:
        """The layers under --window."""
        if not self.window:
            return self.layers
        return tuple(replace(layer, window=self.window) for layer in self.layers)

    @property
    def program(self) -> StepProgram:
        """Vocabulary and KV groups, which is what the engine and the plan read; no operations."""
        counts = Counter(layer.kv_shape for layer in self.served_layers)
        groups = tuple(KvGroupSpec(count, *shape) for shape, count in counts.items())
        return StepProgram((), (), (), groups, self.vocab_size)

    def kv_places(self) -> list[tuple[int, int]]:
        """KV group of each layer, and its number within the group."""
        groups = list(dict.fromkeys(layer.kv_shape for layer in self.served_layers))
        used: Counter[int] = Counter()
        places: list[tuple[int, int]] = []
        for layer in self.served_layers:
            group = groups.index(layer.kv_shape)
            places.append((group, used[group]))
            used[group] += 1
        return places

    def at_length(self, max_model_len: int) -> AutoModelSpec:
        """The same for any length: frequencies that depend on it are refused."""
        return self
