"""Mixtures of experts: their sizes in a config.json, and the slots of a layer of them.

A checkpoint keeps a matrix an expert, or, as transformers 5 holds them in memory, all experts of a
layer in two tensors: `gate_up_proj` [experts, 2 · intermediate, hidden], gate before up, and
`down_proj` [experts, hidden, intermediate]. Both forms have the same rows in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hearth.core.spec import MoeSpec, RouterSpec, WeightSource
from hearth.models.config_json import ConfigJson
from hearth.models.families.parts import Parts
from hearth.models.sizes import MAX_WIDTH

MAX_EXPERTS = 4096


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """What a family calls the tensors of a layer's experts."""

    block: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


@dataclass(frozen=True, slots=True)
class MoeShape:
    """What a mixture of experts consists of; `shared_size` 0: no shared expert.

    `has_bias`: the checkpoint has a correction of the scores by which experts are chosen.
    """

    router: RouterSpec
    intermediate_size: int
    names: ExpertNames = ExpertNames()
    has_bias: bool = False
    shared_size: int = 0


def read_num_experts(config: ConfigJson, *keys: str) -> int:
    """The number of experts, under the first key that is there. Other keys must agree."""
    given = [key for key in keys if config.has(key)] or [keys[0]]
    count = config.integer(given[0], minimum=1, maximum=MAX_EXPERTS)
    for key in given[1:]:
        if config.integer(key, minimum=1, maximum=MAX_EXPERTS) != count:
            raise config.error(key, f"{count}, as {given[0]} says")
    return count


def read_top_k(config: ConfigJson, num_experts: int, default: int) -> int:
    """How many experts serve a row."""
    return config.integer(
        "num_experts_per_tok", minimum=1, maximum=num_experts, default=min(default, num_experts)
    )


def read_expert_size(config: ConfigJson, default: int) -> int:
    """The intermediate size of one expert."""
    return config.integer("moe_intermediate_size", minimum=1, maximum=MAX_WIDTH, default=default)


def moe(parts: Parts, layer: int, shape: MoeShape) -> MoeSpec:
    """The experts of a layer."""
    hidden, size, count = parts.sizes.hidden_size, shape.intermediate_size, shape.router.num_experts
    base, name = f"model.layers.{layer}.{shape.names.block}", f"layers.{layer}"
    router = shape.router
    if shape.has_bias:
        tensor = f"{base}.gate.e_score_correction_bias"
        bias = parts.table.vector(f"{name}.router.bias", (tensor, count))
        router = replace(router, bias=bias)
    modern_gate = WeightSource(f"model.layers.{layer}.mlp.gate.weight", count)
    gate = WeightSource(f"{base}.gate.weight", count, otherwise=modern_gate)
    table, sources = parts.table, _Sources(layer, shape, hidden)
    return MoeSpec(
        router=router,
        router_weight=table.router(f"{name}.router", hidden, gate),
        intermediate_size=size,
        activation=parts.activation,
        gate_up=table.stacked(f"{name}.experts.gate_up", size, hidden, sources.gate_up()),
        down=table.stacked(f"{name}.experts.down", hidden, size, sources.down()),
        shared=parts.shared_expert(layer, shape.shared_size) if shape.shared_size else None,
    )


@dataclass(frozen=True, slots=True)
class _Sources:
    """Where the matrices of a layer's experts lie, in either form."""

    layer: int
    shape: MoeShape
    hidden_size: int

    def gate_up(self) -> Iterator[WeightSource]:
        """Gate and up of expert after expert."""
        rows, names = self.shape.intermediate_size, self.shape.names
        for expert in range(self.shape.router.num_experts):
            first = 2 * expert * rows
            yield self._source(expert, names.gate, "gate_up_proj", (rows, first))
            yield self._source(expert, names.up, "gate_up_proj", (rows, first + rows))

    def down(self) -> Iterator[WeightSource]:
        """Down of expert after expert."""
        rows = self.hidden_size
        for expert in range(self.shape.router.num_experts):
            yield self._source(expert, self.shape.names.down, "down_proj", (rows, expert * rows))

    def _source(
        self, expert: int, part: str, stacked: str, rows_first: tuple[int, int]
    ) -> WeightSource:
        rows, first = rows_first
        layer = f"model.layers.{self.layer}"
        whole = WeightSource(f"{layer}.mlp.experts.{stacked}", rows, first)
        tensor = f"{layer}.{self.shape.names.block}.experts.{expert}.{part}.weight"
        return WeightSource(tensor, rows, otherwise=whole)
