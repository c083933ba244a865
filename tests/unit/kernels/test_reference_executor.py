"""The reference executor honours the plan, flows gradients, and refuses plans that contradict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.contract.plan_builder import Chunk, PlanBuilder, Track, teacher_forced
from tests.unit.models.checkpoints import GLM4, VOCABULARY, write_config

from hearth.core.errors import KernelError
from hearth.core.program import StepProgram
from hearth.core.spec import DType, ModelSpec
from hearth.core.step import KvConfig, StepLimits, StepPlan
from hearth.kernels.packing import HostTensor
from hearth.kernels.reference import require_torch
from hearth.kernels.reference.executor import ReferenceExecutor
from hearth.kernels.reference.forward import forward
from hearth.kernels.reference.kv import PassKv, SequenceRows, StepTensors
from hearth.kernels.reference.weights import ReferenceWeights
from hearth.models.loader import LoadedSpec, load_model_spec
from hearth.models.lower import lower
from hearth.models.weights import load_weights

BLOCK_SIZE, NUM_BLOCKS = 4, 24
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedSpec:
    return load_model_spec(write_config(tmp_path, GLM4))


def dummy_weights(loaded: LoadedSpec, program: StepProgram) -> ReferenceWeights:
    weights = ReferenceWeights(program)
    load_weights(loaded, weights, "dummy", seed=2)
    return weights


def make(loaded: LoadedSpec, program: StepProgram | None = None) -> ReferenceExecutor:
    program = program or loaded.program
    kv = KvConfig(BLOCK_SIZE, (NUM_BLOCKS,) * len(program.kv_groups), "float32")
    limits = StepLimits(16, 4, 16, 64)
    return ReferenceExecutor(program, dummy_weights(loaded, program), limits, kv)


def make_plan(wanted: tuple[int, ...] = (3,)) -> StepPlan:
    return PlanBuilder(BLOCK_SIZE, NUM_BLOCKS).plan([Chunk(Track(list(TOKENS)), 4, wanted)])


def dense_logits(
    program: StepProgram, weights: ReferenceWeights, tokens: list[int]
) -> torch.Tensor:
    """One pass over a whole sequence without a cache."""
    count = len(tokens)
    step = StepTensors(
        tokens=torch.tensor(tokens),
        positions=torch.arange(count).repeat(3, 1),
        sequences=(SequenceRows(0, count, 0),),
        logit_rows=torch.arange(count),
    )
    return forward(program, weights, step, PassKv())


def with_window(spec: ModelSpec, window: int) -> ModelSpec:
    first = replace(spec.layers[0], attention=replace(spec.layers[0].attention, window=window))
    return replace(spec, layers=(first, *spec.layers[1:]))


@pytest.mark.parametrize("budget", [1, 3, 15])
def test_paged_steps_equal_one_dense_pass(loaded: LoadedSpec, budget: int) -> None:
    builder = PlanBuilder(BLOCK_SIZE, NUM_BLOCKS)
    paged = teacher_forced(make(loaded), builder, [TOKENS], budget)[0]
    dense = dense_logits(loaded.program, dummy_weights(loaded, loaded.program), TOKENS)
    assert np.abs(paged - dense.numpy()).max() < 1e-5


def test_gradients_reach_every_weight(loaded: LoadedSpec) -> None:
    stored = dummy_weights(loaded, loaded.program)
    weights = {slot.name: stored[slot.name].requires_grad_() for slot in loaded.program.slots}
    dense_logits_of = forward(
        loaded.program,
        weights,
        StepTensors(
            tokens=torch.tensor(TOKENS),
            positions=torch.arange(len(TOKENS)).repeat(3, 1),
            sequences=(SequenceRows(0, 8, 0), SequenceRows(8, len(TOKENS), 0)),
            logit_rows=torch.arange(len(TOKENS)),
        ),
        PassKv(),
    )
    loss = torch.nn.functional.cross_entropy(dense_logits_of, torch.tensor(TOKENS))
    gradients = torch.autograd.grad(loss, list(weights.values()))
    without = [name for name, g in zip(weights, gradients) if not g.abs().sum()]
    assert without == []


def test_a_window_hides_what_is_behind_it(loaded: LoadedSpec) -> None:
    """With one windowed layer only, a token further back changes nothing at a late row."""
    spec = replace(loaded.spec, layers=loaded.spec.layers[:1])
    program = lower(with_window(spec, 3))
    weights = dummy_weights(loaded, loaded.program)
    changed = [0, *TOKENS[1:]]
    one, other = (dense_logits(program, weights, tokens) for tokens in (TOKENS, changed))
    differs = (one - other).abs().amax(dim=-1) > 0
    assert differs.tolist() == [True] * 3 + [False] * (len(TOKENS) - 3)


def test_blocks_behind_a_window_need_not_be_listed(loaded: LoadedSpec) -> None:
    spec = with_window(loaded.spec, 4)
    program = lower(replace(spec, layers=spec.layers[:1]))
    executor = make(loaded, program)
    builder = PlanBuilder(BLOCK_SIZE, NUM_BLOCKS)
    track = Track(list(TOKENS))
    executor.execute(builder.plan([Chunk(track, 12)]))
    plan = builder.plan([Chunk(track, 3, (0, 1, 2))])
    whole = executor.execute(plan)
    # Rows 12 to 14 see tokens from 9 on: blocks 0 and 1 (tokens 0 to 7) are gone.
    holed = replace(
        plan,
        blocks=plan.blocks[2:],
        block_start=plan.block_start - np.array([[0, 2]], np.int32),
        first_block=plan.first_block + np.int32(2),
    )
    part = executor.execute(holed)
    assert whole.logits is not None
    assert part.logits is not None
    assert np.array_equal(whole.logits, part.logits)


def test_sections_turn_by_their_own_position_row(loaded: LoadedSpec) -> None:
    """M-RoPE: with two angles in two sections, the third position row is never looked at."""
    rope = replace(loaded.spec.rope, rotary_dim=4, inv_freq=(1.0, 0.5), sections=(1, 1))
    program = lower(replace(loaded.spec, rope=rope))
    executor = make(loaded, program)
    plan = make_plan((3,))
    base = executor.execute(plan).logits
    assert base is not None
    for row, is_seen in ((0, True), (1, True), (2, False)):
        positions = plan.positions.copy()
        positions[row, :2] += 5
        other = executor.execute(replace(plan, positions=positions)).logits
        assert other is not None
        assert np.array_equal(base, other) is not is_seen


def test_hashes_and_logits_come_when_asked(loaded: LoadedSpec) -> None:
    executor = make(loaded)
    plan = make_plan((2, 3))
    result = executor.execute(replace(plan, want_hashes=True, want_logits=True))
    assert result.hashes is not None
    assert result.logits is not None
    assert result.hashes.dtype == np.uint64
    assert result.logits.shape == (2, VOCABULARY)
    assert result.hashes[0] != result.hashes[1]
    plain = executor.execute(replace(plan, want_logits=False))
    assert plain.hashes is None
    assert plain.logits is None


def breaking(**changes: Callable[[StepPlan], Any]) -> Callable[[StepPlan], StepPlan]:
    return lambda plan: replace(plan, **{name: make(plan) for name, make in changes.items()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (breaking(tokens=lambda p: p.tokens + 7), "outside the vocabulary of 10"),
        (
            breaking(tokens=lambda p: p.tokens * 0 - 3),
            "a token refers to row 2 of the step before, which had 0",
        ),
        (breaking(slots=lambda p: p.slots + 96), "a slot lies outside 0 to 95"),
        (breaking(blocks=lambda p: p.blocks + 24), "a block lies outside 0 to 23"),
        (breaking(context=lambda p: p.context + 8), "the blocks of sequence 0 cover 4 of 12"),
        (breaking(row_start=lambda p: p.row_start - 1), "row_start covers up to 3 of 4 tokens"),
        (
            breaking(encoder=lambda p: np.zeros((1, 3), np.int32)),
            "an encoder row lies outside",
        ),
        (
            breaking(logit_rows=lambda p: np.zeros(17, np.int32)),
            "the plan has 17 logits rows; permitted: up to 16",
        ),
    ],
)
def test_a_plan_that_contradicts_is_refused(
    loaded: LoadedSpec, change: Callable[[StepPlan], StepPlan], message: str
) -> None:
    with pytest.raises(KernelError, match=message):
        make(loaded).execute(change(make_plan()))


def test_a_closed_executor_refuses(loaded: LoadedSpec) -> None:
    executor = make(loaded)
    executor.close()
    executor.close()
    with pytest.raises(KernelError, match="closed"):
        executor.execute(make_plan())


def test_dummy_weights_are_reproducible_and_usable(loaded: LoadedSpec) -> None:
    one, other = (dummy_weights(loaded, loaded.program) for _ in range(2))
    for slot in loaded.program.slots:
        assert torch.equal(one[slot.name], other[slot.name])
    assert torch.equal(one["final_norm"], torch.ones(8))
    assert not one["layers.0.qkv.bias"].any()
    logits = dense_logits(loaded.program, one, TOKENS)
    assert 0.1 < float(logits.std()) < 10


def test_a_tensor_that_does_not_fit_its_slot_is_refused(loaded: LoadedSpec) -> None:
    weights = ReferenceWeights(loaded.program)
    slot = next(s for s in loaded.program.slots if s.name == "layers.0.down")
    tensor = HostTensor(np.zeros(4 * 6 * 4, np.uint8), DType.FLOAT32, (4, 6))
    weights.put(slot, 4, tensor)
    with pytest.raises(KernelError, match=r"shape \[8, 6\] cannot take \[4, 6\] at row 6"):
        weights.put(slot, 6, tensor)


def test_a_missing_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    require_torch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(KernelError, match=r"pip install 'hearth\[torch\]'"):
        require_torch()
