"""Models with scaled RoPE answer as transformers does, beyond their original context.

Kinds that there follow the length of each sequence are compared twice: as they are, on a sequence
of the length that is served, and on all lengths with transformers' frequencies held at those of
the served length, which is what hearth promises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.contract.comparison import compare_logits
from tests.contract.conftest import Build
from tests.contract.plan_builder import PlanBuilder, generate, teacher_forced
from tests.support.executors import Setup
from tests.support.hf_models import NUM_NEW_TOKENS, Expected, ModelCase, build_model, expect
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hearth.models.loader import load_model_spec
from hearth.models.lower import lower
from hearth.models.rope_scaling import inverse_frequencies

ORIGINAL = 32
LONGEST = 15  # of the sequences: a prompt of 71 tokens and 64 new ones
SERVED = 71 + NUM_NEW_TOKENS
BUDGET = 64
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 90,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 211,
    "num_hidden_layers": 2,
}
FACTORS = [1.0 + i / 3 for i in range(8)]


def case(
    name: str, seed: int, family: str = "llama", own: int = 5 * ORIGINAL, **rope: Any
) -> ModelCase:
    sizes = {**SIZES, "max_position_embeddings": own}
    if family == "phi3":
        sizes["original_max_position_embeddings"] = ORIGINAL
    parameters = {"rope_type": name, "rope_theta": 1000.0, **rope}
    return ModelCase(f"{family}-{name}", family, seed, {**sizes, "rope_parameters": parameters})


OWN: dict[str, Any] = {"original_max_position_embeddings": ORIGINAL}
CASES = (
    case("linear", 0, own=ORIGINAL, factor=5.0),
    case("dynamic", 0, own=ORIGINAL, factor=5.0),
    case("yarn", 1, factor=5.0, beta_fast=8, **OWN),
    case("llama3", 1, factor=5.0, low_freq_factor=1.0, high_freq_factor=4.0, **OWN),
    case("longrope", 0, "phi3", short_factor=[1.0] * 8, long_factor=FACTORS),
)


def hold_frequencies(model: Any) -> None:
    """At those of a sequence of the served length."""
    rotary = model.model.rotary_emb
    compute = ROPE_INIT_FUNCTIONS[rotary.rope_type]
    frequencies, rotary.attention_scaling = compute(model.config, "cpu", seq_len=SERVED)
    rotary.inv_freq.copy_(frequencies)
    rotary.rope_type = "default"


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Callable[[ModelCase], Expected]:
    known: dict[str, Expected] = {}

    def get(which: ModelCase) -> Expected:
        if which.name not in known:
            path = tmp_path_factory.mktemp(which.name)
            known[which.name] = expect(which, path, hold_frequencies)
        return known[which.name]

    return get


@pytest.mark.parametrize("which", CASES, ids=lambda which: which.name)
def test_answers_beyond_the_original_context_equal_transformers(
    which: ModelCase, held: Callable[[ModelCase], Expected], build: Build
) -> None:
    expected = held(which)
    setup = Setup(load_model_spec(expected.path, max_model_len=SERVED), max_tokens=BUDGET)
    executor = build(setup)
    sequences = [expected.sequence(i) for i in range(len(expected.prompts))]
    builder = PlanBuilder(setup.block_size, setup.num_blocks)
    actual = teacher_forced(executor, builder, sequences, BUDGET)
    difference = compare_logits(expected.logits, actual)
    print(f"largest difference {difference.largest:.2e}, gap {expected.smallest_gap():.2e}")
    assert difference.is_close, difference
    assert expected.num_distinct() > 10
    assert expected.smallest_gap() > 2 * difference.largest, "greedy tokens could differ"
    builder = PlanBuilder(setup.block_size, setup.num_blocks)
    answers = generate(executor, builder, expected.prompts, NUM_NEW_TOKENS, BUDGET)
    assert answers == list(expected.greedy)


@pytest.mark.parametrize("which", CASES, ids=lambda which: which.name)
def test_a_sequence_of_the_served_length_equals_transformers_as_it_is(
    which: ModelCase, held: Callable[[ModelCase], Expected], build: Build
) -> None:
    expected = held(which)
    tokens = expected.sequence(LONGEST)
    assert len(tokens) == SERVED
    with torch.no_grad():
        logits = build_model(which)(torch.tensor([tokens])).logits[0].numpy()
    setup = Setup(load_model_spec(expected.path, max_model_len=SERVED), max_tokens=BUDGET)
    builder = PlanBuilder(setup.block_size, setup.num_blocks)
    actual = teacher_forced(build(setup), builder, [tokens], BUDGET)
    assert compare_logits([logits], actual).is_close


@pytest.mark.parametrize("executor_name", ["cpu"])
@pytest.mark.parametrize("which", CASES, ids=lambda which: which.name)
def test_a_model_without_its_scaling_is_noticed(
    which: ModelCase, held: Callable[[ModelCase], Expected], build: Build
) -> None:
    expected = held(which)
    loaded = load_model_spec(expected.path, max_model_len=SERVED)
    plain = inverse_frequencies(1000.0, loaded.spec.rope.rotary_dim)
    mutants = [replace(loaded.spec.rope, inv_freq=plain)]
    if loaded.spec.rope.attention_scaling != 1.0:
        mutants.append(replace(loaded.spec.rope, attention_scaling=1.0))
    for rope in mutants:
        setup = Setup(loaded, max_tokens=BUDGET)
        builder = PlanBuilder(setup.block_size, setup.num_blocks)
        executor = build(setup, lower(replace(loaded.spec, rope=rope)))
        actual = teacher_forced(executor, builder, [expected.sequence(LONGEST)], BUDGET)
        assert not compare_logits([expected.logits[LONGEST]], actual).is_close
