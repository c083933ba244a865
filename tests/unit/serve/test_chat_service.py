"""The chat pipeline without HTTP: defaults, limits, stop strings, one terminal event."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.serve.fake_engine import EOS, MAX_MODEL_LEN, FakeEngine, toy_model

from hearth.core.errors import (
    ContextOverflowError,
    EngineDeadError,
    ModelNotServedError,
    OverloadedError,
    RequestError,
)
from hearth.models.generation_config import GenerationDefaults
from hearth.serve.chat_service import ChatCall, ChatService
from hearth.serve.model import ServedModel
from hearth.serve.running_answer import Delta, RunningAnswer
from hearth.serve.sampling import SamplingChoices, sampling_choice

HI: tuple[dict[str, Any], ...] = ({"role": "user", "content": "Hi"},)


@pytest.fixture
def service(engine: FakeEngine, model: ServedModel) -> ChatService:
    return ChatService(engine, model)


async def run(service: ChatService, **fields: Any) -> tuple[str, RunningAnswer, list[Delta]]:
    chat = service.submit(await service.prepare(ChatCall(messages=HI, **fields)))
    deltas = [delta async for delta in chat.deltas()]
    return "".join(delta.text for delta in deltas), chat, deltas


async def test_an_answer_is_the_text_up_to_the_stop_token(
    service: ChatService, engine: FakeEngine
) -> None:
    engine.answer = "你好，世界！🙂"
    text, chat, deltas = await run(service)
    assert text == engine.answer
    assert [d.finish_reason for d in deltas if d.finish_reason] == ["stop"]
    num_tokens = len(engine.tokenizer.encode(engine.answer))
    assert chat.usage.num_completion_tokens == num_tokens + 1  # the stop token was generated
    assert chat.usage.num_prompt_tokens == len(engine.submitted[0].prompt)
    assert engine.cancelled == []


async def test_defaults_come_from_the_model_and_a_seed_is_drawn(
    service: ChatService, engine: FakeEngine
) -> None:
    await run(service)
    await run(service, sampling=SamplingChoices(temperature=0.0, top_k=-1, seed=7))
    first, second = engine.submitted
    assert first.sampling.temperature == 0.5
    assert second.sampling.temperature == 0.0
    assert second.sampling.top_k == 0
    assert second.sampling.seed == 7
    assert first.sampling.seed != second.sampling.seed
    assert first.max_tokens == MAX_MODEL_LEN - len(first.prompt)
    assert first.stop_token_ids == {EOS}


async def test_ignore_eos_leaves_only_the_stop_tokens_asked_for(
    service: ChatService, engine: FakeEngine
) -> None:
    await run(service, ignore_eos=True, stop_token_ids=frozenset({5}))
    assert engine.submitted[0].stop_token_ids == {5}


@pytest.mark.parametrize("group", [1, 3, 100])
async def test_a_stop_string_cancels_the_engine_and_ends_the_count(
    service: ChatService, engine: FakeEngine, group: int
) -> None:
    engine.answer, engine.group = "one</answer>two three four five", group
    text, chat, deltas = await run(service, stop=("</answer>", "five"))
    assert text == "one"
    assert deltas[-1].finish_reason == "stop"
    assert engine.cancelled == [chat.job.request.request_id]
    with_stop = len(engine.tokenizer.encode("one</answer>"))
    assert chat.usage.num_completion_tokens <= with_stop + 1


async def test_what_was_held_back_for_a_stop_string_comes_at_the_end(
    service: ChatService, engine: FakeEngine
) -> None:
    engine.answer = "done</ans"
    text, _, _ = await run(service, stop=("</answer>",))
    assert text == engine.answer


async def test_max_tokens_ends_with_length_and_flushes_half_a_character(
    service: ChatService, engine: FakeEngine
) -> None:
    engine.answer = "\u0e01" * 3  # three bytes each, not in the vocabulary: several tokens
    text, chat, deltas = await run(service, max_tokens=2)
    assert deltas[-1].finish_reason == "length"
    assert text == "\ufffd"
    assert chat.usage.num_completion_tokens == 2


async def test_cached_tokens_are_reported(service: ChatService, engine: FakeEngine) -> None:
    engine.num_cached = 4
    _, chat, _ = await run(service)
    assert chat.usage.num_cached_tokens == 4


async def test_the_engines_death_is_an_error_and_nothing_is_left(
    service: ChatService, engine: FakeEngine
) -> None:
    engine.fail_after = 1
    with pytest.raises(EngineDeadError, match="is gone"):
        await run(service)
    assert engine.num_running == 0


async def test_a_closed_chat_frees_its_sequence_once(
    service: ChatService, engine: FakeEngine
) -> None:
    chat = service.submit(await service.prepare(ChatCall(messages=HI)))
    chat.close()
    chat.close()
    assert engine.cancelled == [chat.job.request.request_id]


async def test_overload_is_passed_on(service: ChatService, engine: FakeEngine) -> None:
    engine.submit_error = OverloadedError("full")
    with pytest.raises(OverloadedError):
        await run(service)


async def test_the_context_check_gives_both_numbers(service: ChatService) -> None:
    with pytest.raises(ContextOverflowError) as caught:
        await service.prepare(ChatCall(messages=HI, max_tokens=500))
    assert "max_tokens 500" in caught.value.message
    assert "400 tokens" in caught.value.message
    assert caught.value.param == "max_tokens"
    long = ({"role": "user", "content": "the quick " * 500},)
    with pytest.raises(ContextOverflowError, match=r"prompt has [0-9,]+ tokens") as caught:
        await service.prepare(ChatCall(messages=long))
    assert caught.value.param == "messages"


async def test_a_model_that_is_not_served_is_named(service: ChatService) -> None:
    with pytest.raises(ModelNotServedError, match="'toy', 'org/alias'"):
        await service.prepare(ChatCall(messages=HI, model="gpt"))
    assert (await service.prepare(ChatCall(messages=HI, model="org/alias"))).model_name != "toy"


async def test_without_a_chat_template_the_request_is_refused(engine: FakeEngine) -> None:
    service = ChatService(engine, toy_model(template=None))
    with pytest.raises(RequestError, match="no chat template"):
        await service.prepare(ChatCall(messages=HI))


async def test_stop_token_ids_outside_the_vocabulary_are_refused(service: ChatService) -> None:
    with pytest.raises(RequestError, match="outside the vocabulary"):
        await service.prepare(ChatCall(messages=HI, stop_token_ids=frozenset({10**6})))


async def test_penalty_and_length_of_the_model_hold_where_a_request_says_nothing() -> None:
    defaults = GenerationDefaults(repetition_penalty=1.05, max_new_tokens=7, reason="a test")
    model = toy_model(defaults=defaults)
    service = ChatService(FakeEngine(model.text.tokenizer), model)
    hi = ({"role": "user", "content": "hi"},)
    silent = (await service.prepare(ChatCall(messages=hi))).request
    assert (silent.sampling.repetition_penalty, silent.max_tokens) == (1.05, 7)
    asked = ChatCall(messages=hi, sampling=SamplingChoices(repetition_penalty=1.0), max_tokens=50)
    loud = (await service.prepare(asked)).request
    assert (loud.sampling.repetition_penalty, loud.max_tokens) == (1.0, 50)
    shown = sampling_choice(defaults)
    assert "repetition_penalty 1.05, max_tokens 7" in shown.value
    assert shown.reason == "repetition_penalty, max_tokens: a test"
