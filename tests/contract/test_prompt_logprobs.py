"""Log-probabilities of given tokens against transformers, teacher-forced, through the engine."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.contract.comparison import LOGITS_TOLERANCE
from tests.contract.conftest import Build
from tests.support.engines import EngineSizes, build_engine
from tests.support.executors import Setup
from tests.support.hf_models import CASES, Expected, ModelCase

from hearth.core.request import Request, SamplingParams
from hearth.core.step import Executor, StepPlan, StepResult
from hearth.engine.engine import Engine
from hearth.models.loader import LoadedSpec, load_model_spec

NUM_TOP = 5


@dataclass
class Scored:
    """What the engine told of one prompt; row i is about token i + 1."""

    logprobs: NDArray[np.float32]
    ranks: NDArray[np.int32]
    top_tokens: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]
    tokens: list[int]


def scored(engine: Engine, prompts: list[tuple[int, ...]], max_tokens: int) -> list[Scored]:
    """The prompts' scores, all of them asked for at once."""
    chunks: list[list[Any]] = [[array("f"), array("i"), array("i"), array("f")] for _ in prompts]
    answers: list[list[int]] = [[] for _ in prompts]
    for index, prompt in enumerate(prompts):
        sampling = SamplingParams(temperature=0, num_prompt_logprobs=NUM_TOP, num_logprobs=0)
        engine.submit(Request(str(index), prompt, max_tokens, sampling))
    while engine.has_work:
        for event in engine.step():
            index = int(event.request_id)
            answers[index] += event.tokens
            if (found := event.prompt_logprobs) is None:
                continue
            assert found.start == len(chunks[index][0]) + 1
            parts = (found.logprobs, found.ranks, found.top_tokens, found.top_logprobs)
            for values, part in zip(chunks[index], parts, strict=True):
                values.frombytes(part)
    return [
        Scored(
            np.array(one[0], np.float32),
            np.array(one[1], np.int32),
            np.array(one[2], np.int32).reshape(-1, NUM_TOP),
            np.array(one[3], np.float32).reshape(-1, NUM_TOP),
            answer,
        )
        for one, answer in zip(chunks, answers, strict=True)
    ]


def compare(found: Scored, prompt: tuple[int, ...], logits: NDArray[np.float32]) -> None:
    """With transformers' log_softmax; ranks where no other logit is within the tolerance."""
    rows = torch.log_softmax(torch.from_numpy(logits[: len(prompt) - 1]).double(), -1).numpy()
    given = np.array(prompt[1:], np.int64)
    assert found.logprobs.shape == given.shape
    own = rows[np.arange(len(given)), given]
    np.testing.assert_allclose(found.logprobs, own, atol=2 * LOGITS_TOLERANCE, rtol=0)
    least = (rows > own[:, None] + LOGITS_TOLERANCE).sum(-1) + 1
    most = (rows > own[:, None] - LOGITS_TOLERANCE).sum(-1)
    assert (found.ranks >= least).all()
    assert (found.ranks <= most).all()
    for place, tokens in enumerate(found.top_tokens):
        assert len(set(tokens.tolist())) == NUM_TOP
        np.testing.assert_allclose(
            found.top_logprobs[place], rows[place, tokens], atol=2 * LOGITS_TOLERANCE, rtol=0
        )
        best = np.sort(rows[place])[::-1][:NUM_TOP]
        np.testing.assert_allclose(
            found.top_logprobs[place], best, atol=2 * LOGITS_TOLERANCE, rtol=0
        )


def test_a_prompts_scores_are_those_of_transformers(
    expected: Expected, loaded: LoadedSpec, build: Build, executor_name: str
) -> None:
    sizes = EngineSizes(64, num_blocks=512, max_num_seqs=4)
    if executor_name == "reference":  # slow: a few prompts, in whole chunks
        sizes = replace(sizes, budget=512, max_num_seqs=16)
    which = range(0, len(expected.prompts), 4 if executor_name == "reference" else 1)
    prompts = [expected.prompts[index] for index in which]
    setup = Setup(loaded, sizes.budget, sizes.block_size, sizes.num_blocks)
    engine = build_engine(build(setup), sizes)
    found = scored(engine, prompts, 0)
    for index, one in zip(which, found, strict=True):
        compare(one, expected.prompts[index], expected.logits[index])
        assert one.tokens == []


class RowsSeen:
    """An executor that notes the most logits rows of a step."""

    def __init__(self, inner: Executor) -> None:
        self.inner, self.program, self.info = inner, inner.program, inner.info
        self.most = 0

    def execute(self, plan: StepPlan) -> StepResult:
        self.most = max(self.most, len(plan.logit_rows))
        return self.inner.execute(plan)

    def close(self) -> None:
        """Closed by the one who built it."""


@pytest.mark.parametrize("executor_name", ["cpu"])
def test_scores_and_answers_have_the_same_bits_in_any_chunks_and_company(
    expected_of: Callable[[ModelCase], Expected], build: Build
) -> None:
    expected = expected_of(CASES[0])
    loaded = load_model_spec(expected.path)
    prompts = list(expected.prompts[-6:])
    known: list[Scored] = []
    num_preemptions = 0
    for budget, max_num_seqs, num_blocks, together in (
        (512, 16, 512, False),
        (512, 16, 512, True),
        (7, 3, 512, True),
        (64, 5, 8, True),
        (9, 9, 12, True),
        (1, 1, 512, True),
    ):
        sizes = EngineSizes(budget, max_num_seqs, num_blocks, max_model_len=128)
        setup = Setup(loaded, sizes.budget, sizes.block_size, sizes.num_blocks)
        seen = RowsSeen(build(setup))
        engine = build_engine(seen, sizes)
        groups = [prompts] if together else [[prompt] for prompt in prompts]
        found = [one for group in groups for one in scored(engine, group, 20)]
        assert seen.most <= min(max_num_seqs, budget), "more rows than there is memory for"
        known = known or found
        print(sizes, engine.stats().num_preemptions)
        num_preemptions += engine.stats().num_preemptions
        for one, first in zip(found, known, strict=True):
            assert one.tokens == first.tokens
            for name in ("logprobs", "ranks", "top_tokens", "top_logprobs"):
                assert getattr(one, name).tobytes() == getattr(first, name).tobytes(), name
    assert num_preemptions > 0
