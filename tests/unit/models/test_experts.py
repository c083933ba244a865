"""Mixtures of experts: read from a config, lowered, and filled from either form of checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.models.checkpoints import (
    HIDDEN,
    LLAMA,
    RecordingSink,
    Tensors,
    llama_tensors,
    write_config,
    write_safetensors,
)

from hearth.core.errors import ModelError, WeightsError
from hearth.core.program import Add, BufferRows, Experts, Linear
from hearth.core.spec import DType, LayerSpec, MoeSpec, RouterScoring, RouterSpec
from hearth.core.units import round_up
from hearth.host.scratch import scratch_bytes
from hearth.kernels.packing import arena_bytes
from hearth.models.loader import LoadedSpec, load_model_spec
from hearth.models.weights import load_weights

EXPERTS, SIZE = 4, 5
SOFTMAX, SIGMOID = RouterScoring.SOFTMAX, RouterScoring.SIGMOID
QWEN3: dict[str, Any] = {
    **LLAMA,
    "architectures": ["Qwen3MoeForCausalLM"],
    "head_dim": 4,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": SIZE,
}
MIXTRAL: dict[str, Any] = {
    **LLAMA,
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": EXPERTS,
    "intermediate_size": SIZE,
}
GLM4: dict[str, Any] = {
    **LLAMA,
    "architectures": ["Glm4MoeForCausalLM"],
    "head_dim": 4,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": SIZE,
    "routed_scaling_factor": 2.5,
    "num_hidden_layers": 3,
}


def load_spec(directory: Path, base: dict[str, Any], **changes: Any) -> LoadedSpec:
    return load_model_spec(write_config(directory, base, **changes))


def moe_of(layer: LayerSpec) -> MoeSpec:
    assert isinstance(layer.mlp, MoeSpec)
    return layer.mlp


def sparse_layers(loaded: LoadedSpec) -> list[int]:
    return [i for i, layer in enumerate(loaded.spec.layers) if isinstance(layer.mlp, MoeSpec)]


@pytest.mark.parametrize(
    ("base", "changes", "router"),
    [
        (QWEN3, {}, RouterSpec(4, 2, SOFTMAX, False)),
        (QWEN3, {"norm_topk_prob": True}, RouterSpec(4, 2, SOFTMAX, True)),
        (QWEN3, {"num_experts": ..., "num_local_experts": 6}, RouterSpec(6, 2, SOFTMAX, False)),
        (QWEN3, {"num_experts": 12, "num_experts_per_tok": ...}, RouterSpec(12, 8, SOFTMAX, False)),
        (MIXTRAL, {}, RouterSpec(4, 2, SOFTMAX, True)),
        (MIXTRAL, {"num_experts_per_tok": 4}, RouterSpec(4, 4, SOFTMAX, True)),
        (
            GLM4,
            {"n_group": 2, "norm_topk_prob": False},
            RouterSpec(4, 2, SIGMOID, False, 2.5, "layers.2.router.bias", 2, 1),
        ),
    ],
)
def test_the_router_is_that_of_the_config(
    tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], router: RouterSpec
) -> None:
    assert moe_of(load_spec(tmp_path, base, **changes).spec.layers[-1]).router == router


@pytest.mark.parametrize(
    ("base", "changes", "layers"),
    [
        (QWEN3, {"num_hidden_layers": 4}, [0, 1, 2, 3]),
        (QWEN3, {"num_hidden_layers": 4, "mlp_only_layers": [0, 2]}, [1, 3]),
        (QWEN3, {"num_hidden_layers": 6, "decoder_sparse_step": 2}, [1, 3, 5]),
        (QWEN3, {"num_hidden_layers": 6, "decoder_sparse_step": 3, "mlp_only_layers": [2]}, [5]),
        (MIXTRAL, {}, [0, 1]),
        (GLM4, {}, [1, 2]),
        (GLM4, {"first_k_dense_replace": 0}, [0, 1, 2]),
    ],
)
def test_the_sparse_layers_are_those_of_the_config(
    tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], layers: list[int]
) -> None:
    assert sparse_layers(load_spec(tmp_path, base, **changes)) == layers


def test_qwen3_has_one_window_for_all_layers(tmp_path: Path) -> None:
    windowed = load_spec(tmp_path, QWEN3, use_sliding_window=True, sliding_window=7).spec
    assert [layer.attention.window for layer in windowed.layers] == [7, 7]
    plain = load_spec(tmp_path, QWEN3, sliding_window=7, use_sliding_window=False).spec
    assert [layer.attention.window for layer in plain.layers] == [0, 0]


def test_glm4_norms_heads_only_where_it_says_so(tmp_path: Path) -> None:
    assert load_spec(tmp_path, GLM4).spec.layers[0].attention.q_norm is None
    normed = load_spec(tmp_path, GLM4, use_qk_norm=True).spec.layers[0].attention
    assert normed.q_norm is not None
    assert normed.k_norm is not None


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (QWEN3, {"num_experts": ...}, "config.json: num_experts is missing"),
        (QWEN3, {"num_experts": 0}, "config.json: num_experts is 0; permitted: an integer from 1"),
        (QWEN3, {"num_local_experts": 5}, "config.json: num_local_experts is 5; permitted: 4, as"),
        (QWEN3, {"num_experts_per_tok": 5}, "config.json: num_experts_per_tok is 5; permitted"),
        (QWEN3, {"mlp_only_layers": 3}, "config.json: mlp_only_layers is 3; permitted: a list"),
        (QWEN3, {"n_routed_experts": 4}, "config.json: n_routed_experts is 4; permitted: 0, null"),
        (QWEN3, {"decoder_sparse_step": 0}, "config.json: decoder_sparse_step is 0; permitted"),
        (GLM4, {"n_group": 3}, "config.json: n_group is 3; permitted: a divisor of 4 experts"),
        (GLM4, {"n_group": 4}, "config.json: n_group is 4; permitted: a divisor of 4 experts"),
        (GLM4, {"topk_group": 2}, "config.json: topk_group is 2; permitted: an integer from 1 to"),
        (
            GLM4,
            {"n_group": 2, "num_experts_per_tok": 3},
            "config.json: num_experts_per_tok is 3; permitted: 1 to 2, the experts of 1 groups",
        ),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(
    tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError) as caught:
        load_spec(tmp_path, base, **changes)
    assert str(caught.value).startswith(message)


def test_a_shared_expert_is_added_to_the_mixture(tmp_path: Path) -> None:
    program = load_spec(tmp_path, GLM4, n_shared_experts=2).program
    ops = list(program.ops)
    index = next(i for i, op in enumerate(ops) if isinstance(op, Experts))
    mixture = ops[index]
    assert isinstance(mixture, Experts)
    names = [type(op).__name__ for op in ops[index - 1 : index + 6]]
    assert names == ["Linear", "Experts", "Linear", "Gate", "Linear", "Add", "Add"]
    first, last, add = ops[index + 1], ops[index + 3], ops[index + 4]
    assert isinstance(first, Linear)
    assert isinstance(last, Linear)
    assert first.x == mixture.x
    assert add == Add(mixture.out, last.out)
    slots = {slot.name: slot for slot in program.slots}
    assert slots[last.weight].cols == 2 * SIZE


def test_a_router_stays_float32_whatever_the_precision(tmp_path: Path) -> None:
    loaded = load_model_spec(write_config(tmp_path, GLM4), "bfloat16")
    dtypes = {slot.name: slot.quant.dtype for slot in loaded.program.slots}
    assert dtypes["layers.2.router"] is dtypes["layers.2.router.bias"] is DType.FLOAT32
    assert dtypes["layers.2.experts.down"] is DType.BFLOAT16


@dataclass(frozen=True)
class Names:
    """What a family calls the matrices of an expert."""

    base: dict[str, Any]
    block: str
    gate: str
    up: str
    down: str


FORMS = (
    Names(QWEN3, "mlp", "gate_proj", "up_proj", "down_proj"),
    Names(MIXTRAL, "block_sparse_moe", "w1", "w3", "w2"),
)


def tensors_of(names: Names) -> Tensors:
    """A checkpoint with a matrix an expert."""
    random = np.random.default_rng(1)
    tensors = {n: t for n, t in llama_tensors().items() if ".mlp." not in n}
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(2):
        base = f"model.layers.{layer}"
        shapes[f"{base}.{names.block}.gate.weight"] = (EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            place = f"{base}.{names.block}.experts.{expert}"
            shapes[f"{place}.{names.gate}.weight"] = (SIZE, HIDDEN)
            shapes[f"{place}.{names.up}.weight"] = (SIZE, HIDDEN)
            shapes[f"{place}.{names.down}.weight"] = (HIDDEN, SIZE)
        if names.base is QWEN3:
            shapes[f"{base}.self_attn.q_norm.weight"] = (4,)
            shapes[f"{base}.self_attn.k_norm.weight"] = (4,)
    made = {n: random.normal(size=shape).astype(np.float32) for n, shape in shapes.items()}
    return {**tensors, **made}


def stacked(names: Names, tensors: Tensors) -> Tensors:
    """The same checkpoint with all experts of a layer in two tensors."""
    made = {n: t for n, t in tensors.items() if ".experts." not in n and "_moe.gate" not in n}
    for layer in range(2):
        block = f"model.layers.{layer}.{names.block}"
        base = f"model.layers.{layer}.mlp"
        parts = [
            [tensors[f"{block}.experts.{e}.{part}.weight"] for e in range(EXPERTS)]
            for part in (names.gate, names.up, names.down)
        ]
        gate_up = [np.concatenate(pair) for pair in zip(parts[0], parts[1])]
        made[f"{base}.experts.gate_up_proj"] = np.stack(gate_up)
        made[f"{base}.experts.down_proj"] = np.stack(parts[2])
        made[f"{base}.gate.weight"] = tensors[f"{block}.gate.weight"]
    return made


@pytest.mark.parametrize("names", FORMS, ids=lambda names: names.block)
def test_both_forms_of_a_checkpoint_fill_the_same_slots(tmp_path: Path, names: Names) -> None:
    tensors = tensors_of(names)
    sinks = []
    for form in (tensors, stacked(names, tensors)):
        write_safetensors(tmp_path / "model.safetensors", form)
        sink = RecordingSink()
        report = load_weights(load_spec(tmp_path, names.base), sink)
        assert report.warnings == ()
        assert report.num_tensors == len(form)
        sinks.append(sink.slots)
    assert sinks[0].keys() == sinks[1].keys()
    for name, stored in sinks[0].items():
        assert stored.tobytes() == sinks[1][name].tobytes()
        assert not np.isnan(stored).any()
    expert = f"model.layers.1.{names.block}.experts.2"
    rows = sinks[0]["layers.1.experts.gate_up"][4 * SIZE : 6 * SIZE]
    parts = [tensors[f"{expert}.{part}.weight"] for part in (names.gate, names.up)]
    assert np.array_equal(rows, np.concatenate(parts))
    rows = sinks[0]["layers.1.experts.down"][2 * HIDDEN : 3 * HIDDEN]
    assert np.array_equal(rows, tensors[f"{expert}.{names.down}.weight"])


def refused(tmp_path: Path, tensors: Tensors) -> str:
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(WeightsError) as caught:
        load_weights(load_spec(tmp_path, QWEN3), RecordingSink())
    return str(caught.value)


def test_an_expert_that_is_missing_is_named(tmp_path: Path) -> None:
    tensors = tensors_of(FORMS[0])
    del tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
    assert "model.layers.1.mlp.experts.3.up_proj.weight" in refused(tmp_path, tensors)


@pytest.mark.parametrize("shape", [(4, 10, 7), (3, 10, 8), (4, 8, 10), (320,), (2, 2, 10, 8)])
def test_stacked_experts_of_another_shape_are_refused(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    tensors = stacked(FORMS[0], tensors_of(FORMS[0]))
    tensors["model.layers.0.mlp.experts.gate_up_proj"] = np.zeros(shape, np.float32)
    message = refused(tmp_path, tensors)
    assert f"shape is {list(shape)}; config.json makes it [40, 8]" in message


def test_the_memory_plan_counts_every_expert_and_their_scratch(tmp_path: Path) -> None:
    program = load_spec(tmp_path, QWEN3, num_hidden_layers=2).program
    stacks = [slot.stack for slot in program.slots if slot.stack > 1]
    assert stacks == 2 * [2 * EXPERTS, EXPERTS]
    others = arena_bytes([slot for slot in program.slots if slot.stack == 1])
    experts = 2 * [EXPERTS * 2 * 64 * HIDDEN * 4, EXPERTS * 64 * SIZE * 4]
    whole_pages = sum(round_up(num_bytes, 4096) for num_bytes in experts)
    assert arena_bytes(program.slots) == others + whole_pages
    widths = {b.name: b.width for b in program.buffers if b.rows is BufferRows.TOKENS}
    assert (widths["expert_gated"], widths["routes"]) == (2 * SIZE, 4)
    rows = sum(round_up(width, 64) for width in widths.values())
    assert scratch_bytes(program, 100, 0) == 4 * 100 * (rows + 2)
