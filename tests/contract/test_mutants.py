"""A model that is broken on purpose fails the comparison of the parity suite, on every executor.

Without this, a tolerance that is too wide or models that are too tame would go unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.contract.comparison import LOGITS_TOLERANCE, Difference, compare_logits
from tests.contract.conftest import Build
from tests.contract.plan_builder import Mutate, PlanBuilder, teacher_forced
from tests.support.executors import Setup
from tests.support.hf_models import CASES, MIXTRAL, Expected, ModelCase

from hearth.core.spec import (
    Activation,
    AttentionSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    MoeSpec,
    RopePairing,
    RouterScoring,
    WeightSlot,
    WeightSource,
)
from hearth.core.step import StepPlan
from hearth.models.loader import load_model_spec
from hearth.models.lower import lower
from hearth.models.rope_scaling import inverse_frequencies

BUDGET = 64
# Sequences of the batch that the mutants are run on: 135 and 71 tokens, two and more chunks each.
SEQUENCES = (15, 6)

LLAMA = next(case for case in CASES if case.name == "llama-12x3-tied-bias")
LLAMA_MLP_BIAS = next(case for case in CASES if case.name == "llama-7x1-mlp-bias-sharded")
GLM4 = next(case for case in CASES if case.name == "glm4-7x1-untied-sharded")
QWEN2, QWEN3, MISTRAL, PHI3, GEMMA2, GEMMA3 = (
    next(case for case in CASES if case.family == family)
    for family in ("qwen2", "qwen3", "mistral", "phi3", "gemma2", "gemma3")
)
QWEN3_MOE, GLM4_MOE = (
    next(case for case in CASES if case.family == family) for family in ("qwen3_moe", "glm4_moe")
)

MutateSpec = Callable[[ModelSpec], ModelSpec]
ExpectedOf = Callable[[ModelCase], Expected]


def theta(spec: ModelSpec) -> ModelSpec:
    wrong = inverse_frequencies(10100.0, spec.rope.rotary_dim)
    return replace(spec, rope=replace(spec.rope, inv_freq=wrong))


def pairing(spec: ModelSpec) -> ModelSpec:
    is_half = spec.rope.pairing is RopePairing.HALF
    other = RopePairing.INTERLEAVED if is_half else RopePairing.HALF
    return replace(spec, rope=replace(spec.rope, pairing=other))


def one_layer(change: Callable[[LayerSpec], LayerSpec]) -> MutateSpec:
    """Breaks the last layer only: the smallest form of the fault."""
    return lambda spec: replace(spec, layers=(*spec.layers[:-1], change(spec.layers[-1])))


def without(part: str, name: str) -> MutateSpec:
    def change(layer: LayerSpec) -> LayerSpec:
        broken = getattr(layer, part)
        assert getattr(broken, name) is not None
        changes: dict[str, Any] = {part: replace(broken, **{name: None})}
        return replace(layer, **changes)

    return one_layer(change)


def without_norm(name: str) -> MutateSpec:
    def change(layer: LayerSpec) -> LayerSpec:
        assert getattr(layer, name) is not None
        changes: dict[str, Any] = {name: None}
        return replace(layer, **changes)

    return one_layer(change)


def swapped_norms(layer: LayerSpec) -> LayerSpec:
    return replace(layer, attention_norm=layer.mlp_norm, mlp_norm=layer.attention_norm)


def wrong_scale(layer: LayerSpec) -> LayerSpec:
    attention = layer.attention
    return replace(layer, attention=replace(attention, scale=attention.scale * 1.01))


def attention_with(change: Callable[[AttentionSpec], dict[str, Any]]) -> MutateSpec:
    """Breaks the attention of the last layer."""

    def changed(layer: LayerSpec) -> LayerSpec:
        changes = change(layer.attention)
        assert any(getattr(layer.attention, name) != value for name, value in changes.items())
        return replace(layer, attention=replace(layer.attention, **changes))

    return one_layer(changed)


def with_window(step: int) -> MutateSpec:
    return attention_with(lambda attention: {"window": attention.window + step})


NO_HEAD_NORMS = attention_with(lambda _: {"q_norm": None, "k_norm": None})
HEAD_NORMS_SWAPPED = attention_with(lambda a: {"q_norm": a.k_norm, "k_norm": a.q_norm})
NO_CAP_OF_SCORES = attention_with(lambda _: {"soft_cap": 0.0})


def whole_head_rotated(spec: ModelSpec) -> ModelSpec:
    dim = spec.layers[0].attention.head_dim
    rope = replace(spec.rope, rotary_dim=dim, inv_freq=inverse_frequencies(10000.0, dim))
    return replace(spec, rope=rope)


def without_window(spec: ModelSpec) -> ModelSpec:
    """In the last layer that has one."""
    index = max(i for i, layer in enumerate(spec.layers) if layer.attention.window)
    layer = spec.layers[index]
    changed = replace(layer, attention=replace(layer.attention, window=0))
    return replace(spec, layers=(*spec.layers[:index], changed, *spec.layers[index + 1 :]))


def one_rotation_for_all(spec: ModelSpec) -> ModelSpec:
    layers = [replace(x, attention=replace(x.attention, rope=None)) for x in spec.layers]
    return replace(spec, layers=tuple(layers))


def silu(layer: LayerSpec) -> LayerSpec:
    assert isinstance(layer.mlp, MlpSpec)
    return replace(layer, mlp=replace(layer.mlp, activation=Activation.SILU))


def experts_of(layer: LayerSpec) -> MoeSpec:
    assert isinstance(layer.mlp, MoeSpec)
    return layer.mlp


def router_with(**changes: Any) -> MutateSpec:
    """Breaks the router of the last layer."""

    def changed(layer: LayerSpec) -> LayerSpec:
        moe = experts_of(layer)
        assert any(getattr(moe.router, name) != value for name, value in changes.items())
        return replace(layer, mlp=replace(moe, router=replace(moe.router, **changes)))

    return one_layer(changed)


def top_k_off_by(step: int) -> MutateSpec:
    def changed(layer: LayerSpec) -> LayerSpec:
        moe = experts_of(layer)
        router = replace(moe.router, top_k=moe.router.top_k + step)
        return replace(layer, mlp=replace(moe, router=router))

    return one_layer(changed)


def no_shared_expert(layer: LayerSpec) -> LayerSpec:
    moe = experts_of(layer)
    assert moe.shared is not None
    return replace(layer, mlp=replace(moe, shared=None))


def slot_with(part: str, change: Callable[[tuple[WeightSource, ...]], Any]) -> MutateSpec:
    """Rearranges the sources of a slot of the last layer's experts."""

    def changed(spec: ModelSpec) -> ModelSpec:
        name: str = getattr(experts_of(spec.layers[-1]), part)

        def mutated(slot: WeightSlot) -> WeightSlot:
            return replace(slot, sources=change(slot.sources)) if slot.name == name else slot

        return replace(spec, slots=tuple(mutated(slot) for slot in spec.slots))

    return changed


def first_two_swapped(sources: tuple[WeightSource, ...]) -> tuple[WeightSource, ...]:
    return (sources[1], sources[0], *sources[2:])


def rotated(sources: tuple[WeightSource, ...]) -> tuple[WeightSource, ...]:
    return (*sources[1:], sources[0])


EXPERTS_SWAPPED = slot_with("down", first_two_swapped)
EXPERTS_SHIFTED = slot_with("down", rotated)
GATE_AND_UP_SWAPPED = slot_with("gate_up", first_two_swapped)


def no_logit_cap(spec: ModelSpec) -> ModelSpec:
    return replace(spec, logit_soft_cap=0.0)


def no_embedding_scale(spec: ModelSpec) -> ModelSpec:
    return replace(spec, embedding_scale=1.0)


SPEC_MUTANTS: list[tuple[str, ModelCase, MutateSpec]] = [
    ("rope theta", LLAMA, theta),
    ("rope theta", GLM4, theta),
    ("rope pairing", LLAMA, pairing),
    ("rope pairing", GLM4, pairing),
    ("no qkv bias", LLAMA, without("attention", "qkv_bias")),
    ("no qkv bias", GLM4, without("attention", "qkv_bias")),
    ("no attention out bias", LLAMA, without("attention", "out_bias")),
    ("no gate_up bias", LLAMA_MLP_BIAS, without("mlp", "gate_up_bias")),
    ("no down bias", LLAMA_MLP_BIAS, without("mlp", "down_bias")),
    ("no post-attention norm", GLM4, without_norm("post_attention_norm")),
    ("no post-mlp norm", GLM4, without_norm("post_mlp_norm")),
    ("norms swapped", GLM4, one_layer(swapped_norms)),
    ("attention scale", LLAMA, one_layer(wrong_scale)),
    ("no qkv bias", QWEN2, without("attention", "qkv_bias")),
    ("window longer by one", QWEN2, with_window(1)),
    ("window shorter by one", QWEN2, with_window(-1)),
    ("window longer by one", MISTRAL, with_window(1)),
    ("window shorter by one", MISTRAL, with_window(-1)),
    ("no window", MISTRAL, without_window),
    ("no head norms", QWEN3, NO_HEAD_NORMS),
    ("head norms swapped", QWEN3, HEAD_NORMS_SWAPPED),
    ("whole head rotated", PHI3, whole_head_rotated),
    ("window longer by one", PHI3, with_window(1)),
    ("no cap of scores", GEMMA2, NO_CAP_OF_SCORES),
    ("no cap of logits", GEMMA2, no_logit_cap),
    ("no scale of embeddings", GEMMA2, no_embedding_scale),
    ("silu for gelu", GEMMA2, one_layer(silu)),
    ("no window", GEMMA2, without_window),
    ("no post-mlp norm", GEMMA2, without_norm("post_mlp_norm")),
    ("one rotation for all layers", GEMMA3, one_rotation_for_all),
    ("no head norms", GEMMA3, NO_HEAD_NORMS),
    ("no window", GEMMA3, without_window),
    ("one expert too many", QWEN3_MOE, top_k_off_by(1)),
    ("one expert too few", QWEN3_MOE, top_k_off_by(-1)),
    ("no renormalization", QWEN3_MOE, router_with(normalize=False)),
    ("two experts swapped", QWEN3_MOE, EXPERTS_SWAPPED),
    ("experts shifted by one", QWEN3_MOE, EXPERTS_SHIFTED),
    ("an expert's gate and up swapped", QWEN3_MOE, GATE_AND_UP_SWAPPED),
    ("one expert too many", MIXTRAL, top_k_off_by(1)),
    ("no renormalization", MIXTRAL, router_with(normalize=False)),
    ("two experts swapped", MIXTRAL, EXPERTS_SWAPPED),
    ("one expert too few", GLM4_MOE, top_k_off_by(-1)),
    ("no shared expert", GLM4_MOE, one_layer(no_shared_expert)),
    ("no correction of the ranks", GLM4_MOE, router_with(bias=None)),
    ("no renormalization", GLM4_MOE, router_with(normalize=False)),
    ("no scale of the experts", GLM4_MOE, router_with(scale=1.0)),
    ("all groups", GLM4_MOE, router_with(top_groups=3)),
    ("one group too few", GLM4_MOE, router_with(top_groups=1)),
    ("softmax for sigmoid", GLM4_MOE, router_with(scoring=RouterScoring.SOFTMAX)),
    ("no head norms", GLM4_MOE, NO_HEAD_NORMS),
]


MUTATED = list(dict.fromkeys(case for _, case, _ in SPEC_MUTANTS))


def sees_the_next_token(plan: StepPlan) -> StepPlan:
    return replace(plan, context=plan.context + 1)


def misses_its_own_token(plan: StepPlan) -> StepPlan:
    return replace(plan, context=(plan.context - 1).clip(min=0))


def run(
    expected: Expected, build: Build, change: MutateSpec | None, mutate: Mutate | None = None
) -> Difference:
    """The comparison of the parity suite, with the spec or the plans changed."""
    loaded = load_model_spec(expected.path)
    if change:
        spec = change(loaded.spec)
        loaded = replace(loaded, spec=spec, program=lower(spec))
    program = loaded.program
    setup = Setup(loaded, max_tokens=BUDGET)
    executor = build(setup)
    num_groups = len(program.kv_groups)
    builder = PlanBuilder(setup.block_size, setup.num_blocks, num_groups=num_groups)
    sequences = [expected.sequence(i) for i in SEQUENCES]
    actual = teacher_forced(executor, builder, sequences, BUDGET, mutate)
    return compare_logits([expected.logits[i] for i in SEQUENCES], actual)


@pytest.mark.parametrize("case", MUTATED, ids=lambda case: case.name)
def test_the_unbroken_model_passes(case: ModelCase, expected_of: ExpectedOf, build: Build) -> None:
    assert run(expected_of(case), build, None).is_close


@pytest.mark.parametrize(
    ("case", "change"),
    [
        pytest.param(case, change, id=f"{case.family}: {name}")
        for name, case, change in SPEC_MUTANTS
    ],
)
def test_a_broken_spec_is_noticed(
    case: ModelCase, change: MutateSpec, expected_of: ExpectedOf, build: Build
) -> None:
    difference = run(expected_of(case), build, change)
    print(f"difference {difference.largest:.3g}, tolerance {LOGITS_TOLERANCE:g}")
    assert not difference.is_close


@pytest.mark.parametrize("mutate", [sees_the_next_token, misses_its_own_token])
@pytest.mark.parametrize("case", [LLAMA, GLM4], ids=lambda case: case.name)
def test_a_causal_mask_off_by_one_is_noticed(
    case: ModelCase, mutate: Mutate, expected_of: ExpectedOf, build: Build
) -> None:
    difference = run(expected_of(case), build, None, mutate)
    print(f"difference {difference.largest:.3g}, tolerance {LOGITS_TOLERANCE:g}")
    assert not difference.is_close


def test_a_difference_of_nan_is_noticed(expected_of: ExpectedOf) -> None:
    logits = expected_of(LLAMA).logits[:2]
    broken = logits[0].copy()
    broken[3, 5] = float("nan")
    assert not compare_logits(logits, [broken, logits[1]]).is_close
