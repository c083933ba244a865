"""Edits follow from the request and the tokens alone, however the sequence came to them."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.toy_engine import Driver, ToySizes, toy_engine

from hearth.core.errors import RequestError
from hearth.core.request import Request, SamplingParams
from hearth.engine.admission import validate_request
from hearth.engine.edits import EditArrays, SequenceEdits, TokenCounts, edits_of

TOKENS = st.lists(st.integers(0, 40), max_size=300)
FORBIDDEN = -math.inf


@given(prompt=TOKENS, pieces=st.lists(TOKENS, max_size=4), counts_prompt=st.booleans())
def test_counts_that_catch_up_are_those_of_the_whole(
    prompt: list[int], pieces: list[list[int]], counts_prompt: bool
) -> None:
    counts = TokenCounts(prompt, counts_prompt=counts_prompt)
    known = array("i", prompt)
    for piece in pieces:
        known.extend(piece)
        counts.advance(known)
    listed = dict(zip(counts.tokens.tolist(), counts.counts.tolist()))
    expected = dict(Counter(known[len(prompt) :]))
    if counts_prompt:
        expected = {**dict.fromkeys(prompt, 0), **expected}
    assert listed == expected
    assert len(counts.tokens) == len(listed)


def test_a_request_that_changes_no_logits_has_no_edits() -> None:
    plain = Request("r", (1, 2), 5, stop_token_ids=frozenset({3}))
    assert edits_of(plain) is None
    for params in (
        SamplingParams(frequency_penalty=0.1),
        SamplingParams(presence_penalty=-0.1),
        SamplingParams(repetition_penalty=1.1),
        SamplingParams(logit_bias=((1, 0.5),)),
        SamplingParams(bad_words=((1,),)),
        SamplingParams(min_tokens=1),
    ):
        assert edits_of(replace(plain, sampling=params)) is not None


def test_stop_tokens_are_forbidden_before_min_tokens() -> None:
    request = Request("r", (1, 2), 9, SamplingParams(min_tokens=2), frozenset({3, 4}))
    edits = SequenceEdits(request)
    forbidden = {3: FORBIDDEN, 4: FORBIDDEN}
    assert edits.biases(array("i", [1, 2])) == forbidden
    assert edits.biases(array("i", [1, 2, 9])) == forbidden
    assert edits.biases(array("i", [1, 2, 9, 9])) == {}


def test_the_end_of_a_bad_phrase_is_forbidden_after_its_beginning() -> None:
    """The beginning must have been generated: what stands in the prompt does not count."""
    words = ((5,), (7, 8), (6, 7, 9))
    request = Request("r", (6, 7), 9, SamplingParams(bad_words=words, logit_bias=((8, 2.0),)))
    edits = SequenceEdits(request)
    assert edits.biases(array("i", [6, 7])) == {5: FORBIDDEN, 8: 2.0}
    assert edits.biases(array("i", [6, 7, 7])) == {5: FORBIDDEN, 8: FORBIDDEN}
    assert edits.biases(array("i", [6, 7, 6, 7])) == {5: FORBIDDEN, 8: FORBIDDEN, 9: FORBIDDEN}


def test_rows_without_edits_are_empty_among_others() -> None:
    penalized = Request("a", (1, 1, 2), 9, SamplingParams(repetition_penalty=2.0))
    biased = Request("b", (1,), 9, SamplingParams(logit_bias=((3, 1.5),)))
    plain = Request("c", (1,), 9)
    owners = [(request, edits_of(request)) for request in (plain, penalized, biased)]
    tokens = [array("i", [1]), array("i", [1, 1, 2, 2]), array("i", [1])]
    edits = EditArrays(owners).build(tokens, [(), (), ()])
    assert edits.count_start.tolist() == [0, 0, 2, 2]
    assert edits.count_tokens.tolist() == [1, 2]
    assert edits.counts.tolist() == [0, 1]
    assert edits.bias_start.tolist() == [0, 0, 0, 1]
    assert edits.bias_tokens.tolist() == [3]
    assert edits.repetition.tolist() == [1, 2, 1]
    assert {a.dtype.name for a in (edits.counts, edits.bias_start, edits.count_tokens)} == {"int32"}


def mixed_requests() -> list[Request]:
    kinds = (
        SamplingParams(0.0, frequency_penalty=0.5),
        SamplingParams(1.0, seed=3, repetition_penalty=1.2, presence_penalty=0.1),
        SamplingParams(0.0),
        SamplingParams(1.0, seed=9, min_tokens=20, logit_bias=((5, 1.0),)),
        SamplingParams(0.0, repetition_penalty=0.8, bad_words=((3,), (4, 5))),
    )
    stops = frozenset(range(60, 66))
    return [
        Request(f"r{n}", tuple(range(n % 3 + 5)), 24, kinds[n % len(kinds)], stops)
        for n in range(10)
    ]


def answers(sizes: ToySizes, requests: list[Request]) -> dict[str, list[int]]:
    engine, _ = toy_engine(sizes)
    driver = Driver(engine)
    for request in requests:
        driver.submit(request)
    driver.run()
    if sizes.num_blocks[0] < 20:
        assert engine.stats().num_preemptions > 0
    return {name: outcome.tokens for name, outcome in driver.outcomes.items()}


def test_preemption_prefix_hits_and_resuming_change_no_edited_answer() -> None:
    requests = mixed_requests()
    alone = {}
    for request in requests:
        alone.update(answers(ToySizes(prefix_caching=False), [request]))
    assert answers(ToySizes(), requests) == alone
    assert answers(ToySizes(num_blocks=(16,), budget=7), requests) == alone
    resumed = [replace(r, generated=tuple(alone[r.request_id][:3])) for r in requests]
    for name, rest in answers(ToySizes(), resumed).items():
        assert alone[name][:3] + rest == alone[name]
    assert all(len(alone[name]) >= 20 for name in ("r3", "r8")), "min_tokens"
    assert any(len(tokens) < 20 for tokens in alone.values()), "stop tokens that stop nothing"


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(frequency_penalty=math.nan),
        SamplingParams(repetition_penalty=0.0),
        SamplingParams(repetition_penalty=math.inf),
        SamplingParams(min_tokens=11),
        SamplingParams(num_logprobs=21),
        SamplingParams(logit_bias=((97, 1.0),)),
        SamplingParams(logit_bias=((1, FORBIDDEN),)),
        SamplingParams(bad_words=((),)),
        SamplingParams(bad_words=((1, 97),)),
    ],
)
def test_what_an_executor_could_not_take_is_refused_at_the_door(params: SamplingParams) -> None:
    request = Request("r", (1,), 10, params)
    with pytest.raises(RequestError):
        validate_request(request, max_model_len=64, vocab_size=97)


def test_choices_of_one_prompt_share_its_blocks() -> None:
    """The followers are submitted at once, and find the whole blocks of the prompt computed."""
    prompt = tuple(np.random.default_rng(1).integers(0, 90, 38).tolist())
    for caching, hits in ((True, 3 * 36), (False, 0)):
        sizes = ToySizes(budget=16, prefix_caching=caching)
        engine, executor = toy_engine(sizes)
        driver = Driver(engine)
        sampling = SamplingParams(1.0, seed=5)
        first = Request("c", prompt, 6, sampling)
        driver.submit(first)
        for choice in range(1, 4):
            follower = replace(first, request_id=f"c{choice}", choice=choice, follows="c")
            driver.submit(follower)
        driver.run()
        assert engine.stats().num_prefix_hit_tokens == hits
        assert len({tuple(outcome.tokens) for outcome in driver.outcomes.values()}) == 4
        if caching:
            assert sum(executor.computed) <= 38 + 3 * 2 + 4 * 6


def test_a_follower_does_not_wait_for_a_request_that_has_ended() -> None:
    engine, _ = toy_engine(ToySizes())
    driver = Driver(engine)
    driver.submit(Request("lead", tuple(range(30)), 5))
    driver.submit(Request("next", tuple(range(30)), 5, choice=1, follows="lead"))
    engine.cancel("lead")
    driver.run()
    assert len(driver.outcomes["next"].tokens) == 5
