"""A model that sees gives the features, logits and tokens of transformers, however work is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.contract.comparison import LOGITS_TOLERANCE
from tests.support.engines import EngineSizes
from tests.support.executors import NAMES
from tests.support.hf_models import NUM_NEW_TOKENS
from tests.support.vision_engine import VisionRig
from tests.support.vision_models import PLANS, SEEDS, ExpectedVision, expect_vision

from hearth.core.request import FinishReason
from hearth.core.spec import ModelSpec, RopePairing
from hearth.models.lower import lower

# Of the largest feature. Measured: 3e-6.
FEATURES_TOLERANCE = 1e-4
# Raw logits have a deviation of 3. Measured: 6e-5 for texts, 6.2e-4 where images are shown, while
# transformers in float32 is itself up to 7.5e-4 away from transformers in float64.
IMAGE_LOGITS_TOLERANCE = 1e-3

MakeRig = Callable[..., VisionRig]


@pytest.fixture(scope="session", params=list(SEEDS))
def expected(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ExpectedVision:
    """What transformers answers for each family; computed once."""
    return expect_vision(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(params=NAMES)
def rig(request: pytest.FixtureRequest, expected: ExpectedVision) -> Iterator[MakeRig]:
    """Builds engines over the executor under test, and closes them."""
    made: list[VisionRig] = []

    def make(sizes: EngineSizes | None = None, **changes: Any) -> VisionRig:
        sizes = sizes or EngineSizes(max_model_len=512)
        made.append(VisionRig(request.param, expected, replace(sizes, **changes)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_the_conversations_are_fit_for_the_comparison(expected: ExpectedVision) -> None:
    for conversation, answer, rows in zip(
        expected.conversations, expected.greedy, expected.logits, strict=True
    ):
        assert len(set(answer)) >= 20
        best = np.sort(rows[len(conversation.prompt) - 1 : -1], axis=-1)
        assert (best[:, -1] - best[:, -2]).min() >= 3 * IMAGE_LOGITS_TOLERANCE
    assert max(len(conversation.pictures) for conversation in expected.conversations) == 3


def test_features_equal_transformers(expected: ExpectedVision, rig: MakeRig) -> None:
    one = rig()
    for picture, features in zip(expected.pictures, expected.features, strict=True):
        found = one.encode(picture)
        largest = float(np.abs(found - features).max())
        print(f"largest difference {largest:.1e} of {np.abs(features).max():.1f}")
        assert largest <= FEATURES_TOLERANCE * np.abs(features).max()


@pytest.mark.parametrize("rows", [4, 12, 96])
def test_features_do_not_depend_on_how_many_patches_go_together(
    expected: ExpectedVision, rig: MakeRig, rows: int
) -> None:
    one = rig()
    for picture in expected.pictures:
        assert (one.encode(picture, rows) == one.encode(picture)).all()


@pytest.mark.parametrize("budget", [7, 64, 512])
def test_greedy_tokens_of_a_mixed_batch_equal_transformers(
    expected: ExpectedVision, rig: MakeRig, budget: int
) -> None:
    """Text alone, one image, three images, together; small budgets cut through images."""
    answers = rig(budget=budget).answers(range(len(PLANS)))
    assert answers == list(expected.greedy)


@pytest.mark.parametrize("number", range(len(PLANS)))
def test_greedy_tokens_alone_equal_transformers(
    expected: ExpectedVision, rig: MakeRig, number: int
) -> None:
    assert rig().answers([number]) == [expected.greedy[number]]


def test_logits_equal_transformers(expected: ExpectedVision, rig: MakeRig) -> None:
    one = rig()
    for number, plan in enumerate(PLANS):
        largest = float(np.abs(one.logits(number) - expected.logits[number]).max())
        print(f"{len(plan)} images: largest difference {largest:.1e}")
        assert largest <= (IMAGE_LOGITS_TOLERANCE if plan else LOGITS_TOLERANCE)


@pytest.mark.parametrize("num_kept", [4, 16, 24, 32])
def test_a_prefix_hit_before_and_inside_an_image_changes_no_token(
    expected: ExpectedVision, rig: MakeRig, num_kept: int
) -> None:
    """The image's blocks are found again by the image; `num_kept` tokens of them are computed."""
    one = rig(EngineSizes(block_size=16, max_model_len=512))
    first = one.answers([2], max_tokens=1)
    assert first == [expected.greedy[2][:1]]
    one.evict_all_but(2, num_kept // 16)
    assert one.answers([2]) == [expected.greedy[2]]
    assert one.last_cached == num_kept // 16 * 16


def test_another_image_of_the_same_size_is_no_prefix_hit(
    expected: ExpectedVision, rig: MakeRig
) -> None:
    one = rig()
    one.answers([1])
    other = one.answer_with_other_pixels(1)
    assert one.last_cached <= expected.conversations[1].starts[0]
    assert other != expected.greedy[1]


def test_preempted_and_resumed_sequences_give_the_same_tokens(
    expected: ExpectedVision, rig: MakeRig
) -> None:
    longest = max(len(c.prompt) for c in expected.conversations) + NUM_NEW_TOKENS
    blocks = -(-longest // 16) + 4
    one = rig(EngineSizes(num_blocks=blocks, max_model_len=blocks * 16, prefix_caching=False))
    assert one.answers(range(len(PLANS))) == list(expected.greedy)
    assert one.num_preemptions > 0


def test_a_request_goes_on_where_it_was_resumed(expected: ExpectedVision, rig: MakeRig) -> None:
    one = rig()
    for number in (1, 2):
        rest = one.resume(number, expected.greedy[number][:20])
        assert rest == expected.greedy[number][20:]


def test_an_image_whose_pixels_are_gone_ends_its_own_requests_only(
    expected: ExpectedVision, rig: MakeRig
) -> None:
    one = rig()
    reasons = one.reasons_with_lost_pixels([0, 1])
    assert reasons == [FinishReason.LENGTH, FinishReason.ERROR]
    assert one.answers([1]) == [expected.greedy[1]]


def without_mrope(spec: ModelSpec) -> ModelSpec:
    """Rotated as if an image's tokens were text."""
    return replace(spec, rope=replace(spec.rope, sections=(sum(spec.rope.sections), 0, 0)))


def swapped_axes(spec: ModelSpec) -> ModelSpec:
    time, height, width = spec.rope.sections
    return replace(spec, rope=replace(spec.rope, sections=(time, width, height)))


def other_pairing(spec: ModelSpec) -> ModelSpec:
    is_half = spec.rope.pairing is RopePairing.HALF
    other = RopePairing.INTERLEAVED if is_half else RopePairing.HALF
    return replace(spec, rope=replace(spec.rope, pairing=other))


@pytest.mark.parametrize("broken", [without_mrope, swapped_axes, other_pairing])
def test_positions_that_are_rotated_wrongly_are_noticed(
    expected: ExpectedVision, broken: Callable[[ModelSpec], ModelSpec]
) -> None:
    one = VisionRig("cpu", expected, EngineSizes(max_model_len=512), spec_change=broken)
    try:
        shown = 1
        error = np.abs(one.logits(shown) - expected.logits[shown]).max(axis=-1)
        behind = expected.conversations[shown].starts[0]
        assert error[behind:].max() > 20 * IMAGE_LOGITS_TOLERANCE
        assert lower(one.spec).digest() != lower(one.plain_spec).digest()
    finally:
        one.close()


def test_the_delta_of_positions_is_kept_through_decoding(expected: ExpectedVision) -> None:
    """Were it lost after the prompt, only the answer's logits would differ."""
    one = VisionRig("cpu", expected, EngineSizes(max_model_len=512), keep_delta=False)
    try:
        prompt = len(expected.conversations[1].prompt)
        error = np.abs(one.logits(1) - expected.logits[1]).max(axis=-1)
        assert error[: prompt - 1].max() <= IMAGE_LOGITS_TOLERANCE
        assert error[prompt:].max() > 20 * IMAGE_LOGITS_TOLERANCE
    finally:
        one.close()
