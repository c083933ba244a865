"""Every parameter of the official client's chats and completions, streamed and not, on a real
server: what comes back must parse into the client's own models and mean what was asked for.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

import httpx
import openai
import pytest
from tests.integration.server import Server

MODEL = "hearth-demo"
QUESTION: Any = [{"role": "user", "content": "What is hearth?"}]
# A request field by field: (fields of OpenAI's, fields of vLLM's that go into extra_body).
SAMPLING: tuple[dict[str, Any], ...] = (
    {"temperature": 0.7, "top_p": 0.9, "seed": 5},
    {"temperature": 1.3, "seed": 6, "extra_body": {"top_k": 5, "min_p": 0.05}},
    {"frequency_penalty": 0.5, "presence_penalty": -0.5, "temperature": 0},
    {"logit_bias": {"5": -100}, "temperature": 0, "user": "someone"},
    {"temperature": 0, "extra_body": {"repetition_penalty": 1.2, "bad_words": ["hearth"]}},
    {"temperature": 0, "extra_body": {"ignore_eos": True, "min_tokens": 9, "priority": -1}},
    {"temperature": 0, "extra_body": {"stop_token_ids": [11], "include_stop_str_in_output": True}},
    {"temperature": 0, "stop": "the"},
    {"temperature": 0, "stop": ["zzz", "a"], "extra_body": {"include_stop_str_in_output": True}},
    {"n": 3, "temperature": 1.0, "seed": 7},
    {"temperature": 0, "extra_body": {"truncate_prompt_tokens": 8}},
)


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", max_retries=0)


def texts_of(answer: Any, *, stream: bool) -> tuple[list[str], list[str | None], Any]:
    """Texts, finish reasons and usage of either endpoint's answer."""
    if not stream:
        texts = [c.text if hasattr(c, "text") else c.message.content for c in answer.choices]
        return texts, [c.finish_reason for c in answer.choices], answer.usage
    texts_at: dict[int, str] = {}
    reasons: dict[int, str | None] = {}
    usage = None
    for chunk in answer:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            piece = choice.text if hasattr(choice, "text") else choice.delta.content
            texts_at[choice.index] = texts_at.get(choice.index, "") + (piece or "")
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    order = sorted(texts_at)
    return [texts_at[i] for i in order], [reasons[i] for i in order], usage


@pytest.mark.parametrize("fields", SAMPLING, ids=lambda f: "+".join([*f, *f.get("extra_body", {})]))
@pytest.mark.parametrize("kind", ["chat", "text"])
def test_sampling_fields_give_the_same_whole_and_streamed(
    client: openai.OpenAI, kind: str, fields: dict[str, Any]
) -> None:
    def ask(**more: Any) -> Any:
        common = {"model": MODEL, "max_tokens": 16, **fields, **more}
        if kind == "chat":
            return client.chat.completions.create(messages=QUESTION, **common)
        return client.completions.create(prompt="hearth is a server that", **common)

    whole = ask()
    assert whole.id.startswith("chatcmpl-" if kind == "chat" else "cmpl-")
    assert whole.object == ("chat.completion" if kind == "chat" else "text_completion")
    assert whole._request_id == whole.id
    is_cut = "truncate_prompt_tokens" in fields.get("extra_body", {})
    codes = [warning["code"] for warning in (whole.model_extra or {}).get("warnings", [])]
    assert codes == (["truncated_prompt"] if is_cut and kind == "chat" else [])
    texts, reasons, usage = texts_of(whole, stream=False)
    assert len(texts) == fields.get("n", 1)
    assert set(reasons) <= {"stop", "length"}
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens >= 0
    streamed = texts_of(ask(stream=True, stream_options={"include_usage": True}), stream=True)
    assert streamed[:2] == (texts, reasons)
    assert streamed[2].total_tokens == usage.total_tokens
    assert texts_of(ask(), stream=False)[0] == texts, "the same seed, another answer"


def test_a_seed_decides_and_none_is_drawn_anew(client: openai.OpenAI) -> None:
    def ask(seed: int | None) -> str | None:
        answer = client.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=24, temperature=2, seed=seed
        )
        return answer.choices[0].message.content

    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in (1, 2, 3, None, None)}) > 1


def test_chat_logprobs_parse_into_the_clients_models(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=6, logprobs=True, top_logprobs=3, temperature=0
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    for place in logprobs.content:
        assert len(place.top_logprobs) == 3
        assert place.logprob <= 0


@pytest.mark.parametrize("stream", [False, True])
def test_completion_logprobs_with_the_echoed_prompt(client: openai.OpenAI, stream: bool) -> None:
    prompts = ["hearth is a server", "What is 昨日?"]
    answer: Any = client.completions.create(
        model=MODEL, prompt=prompts, max_tokens=5, logprobs=2, echo=True, temperature=0,
        n=2, seed=1, stream=stream,
    )  # fmt: skip
    choices = [c for chunk in answer for c in chunk.choices] if stream else answer.choices
    for index in range(4):
        mine = [c for c in choices if c.index == index]
        text = "".join(c.text for c in mine)
        assert text.startswith(prompts[index // 2])
        found = [c.logprobs for c in mine if c.logprobs]
        tokens = [token for one in found for token in one.tokens]
        values = [value for one in found for value in one.token_logprobs]
        offsets = [offset for one in found for offset in one.text_offset]
        tops = [top for one in found for top in one.top_logprobs]
        assert len(tokens) == len(values) == len(offsets) == len(tops)
        assert values[0] is None
        assert tops[0] is None
        assert offsets == sorted(offsets)
        for token, value, offset, top in list(zip(tokens, values, offsets, tops))[1:]:
            assert top[token] == value
            assert value <= 0
            assert token.startswith("bytes:") or text[offset:].startswith(token)
            assert math.fsum(math.exp(v) for v in top.values()) <= 1 + 1e-4


def test_scoring_alone_gives_what_generating_gave(client: openai.OpenAI, server: Server) -> None:
    """As lm-eval scores: the answer's own log-probabilities, found again as a prompt's."""
    prompt = httpx.post(f"{server.url}/tokenize", json={"prompt": "hearth is"}).json()["tokens"]
    first: Any = client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=12, temperature=0, logprobs=1,
        extra_body={"ignore_eos": True},
    ).choices[0]  # fmt: skip
    text = "hearth is" + first.text
    tokens = httpx.post(f"{server.url}/tokenize", json={"prompt": text}).json()["tokens"]
    scored: Any = client.completions.create(
        model=MODEL, prompt=tokens, max_tokens=0, echo=True, logprobs=1,
        extra_body={"prompt_logprobs": 1},
    )  # fmt: skip
    choice = scored.choices[0]
    assert (choice.finish_reason, choice.text) == ("length", text)
    assert scored.usage.completion_tokens == 0
    if tokens[: len(prompt)] == prompt and len(tokens) == len(prompt) + 12:
        assert choice.logprobs.token_logprobs[len(prompt) :] == first.logprobs.token_logprobs
    places = (choice.model_extra or {})["prompt_logprobs"]
    assert places[0] is None
    for token, value, place in zip(
        tokens[1:], choice.logprobs.token_logprobs[1:], places[1:], strict=True
    ):
        assert place[str(token)]["logprob"] == value
        ranks = sorted(entry["rank"] for entry in place.values())
        assert ranks[0] == 1
        assert len(place) == (1 if place[str(token)]["rank"] == 1 else 2)


def test_a_long_prompt_is_scored_in_chunks(client: openai.OpenAI) -> None:
    prompt = "hearth serves models on your own machine. " * 12
    answer = client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=1, echo=True, logprobs=0
    )
    assert answer.usage is not None
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.token_logprobs or []) == answer.usage.total_tokens
    assert answer.usage.prompt_tokens > 68, "more than the logits rows of one step"


def test_chat_prompt_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=2, extra_body={"prompt_logprobs": 2}
    )
    assert answer.usage is not None
    places = (answer.model_extra or {})["prompt_logprobs"]
    assert len(places) == answer.usage.prompt_tokens


def test_a_last_message_is_continued_and_echoed(client: openai.OpenAI) -> None:
    begun: Any = {"role": "assistant", "content": "hearth is a"}
    fields: dict[str, Any] = {"model": MODEL, "max_tokens": 8, "temperature": 0}
    extra = {"add_generation_prompt": False, "continue_final_message": True}
    answers = [
        client.chat.completions.create(
            messages=[*QUESTION, begun], extra_body={**extra, "echo": echo}, **fields
        )
        for echo in (False, True)
    ]
    plain, echoed = (answer.choices[0].message.content or "" for answer in answers)
    assert echoed == begun["content"] + plain
    with pytest.raises(openai.BadRequestError, match="add_generation_prompt"):
        client.chat.completions.create(
            messages=[*QUESTION, begun], extra_body={"continue_final_message": True}, **fields
        )
    open_end = client.chat.completions.create(
        messages=QUESTION, extra_body={"add_generation_prompt": False}, **fields
    )
    usual = client.chat.completions.create(
        messages=QUESTION, extra_body={"chat_template_kwargs": {"enable_thinking": False}}, **fields
    )
    assert open_end.usage is not None
    assert usual.usage is not None
    assert open_end.usage.prompt_tokens < usual.usage.prompt_tokens


def test_unknown_fields_are_named(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=1, extra_body={"tempreature": 1}
    )
    (warning,) = (answer.model_extra or {})["warnings"]
    assert (warning["code"], warning["param"]) == ("unknown_field", "tempreature")


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"temperature": 3}, openai.BadRequestError),
        ({"top_p": 0}, openai.BadRequestError),
        ({"n": 0}, openai.BadRequestError),
        ({"max_tokens": 10**6}, openai.BadRequestError),
        ({"top_logprobs": 2}, openai.BadRequestError),
        ({"stop": [""]}, openai.BadRequestError),
        ({"extra_body": {"prompt_logprobs": 1, "stream": True}}, openai.BadRequestError),
        ({"extra_body": {"min_p": 2}}, openai.BadRequestError),
        ({"model": "gpt-5"}, openai.NotFoundError),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refusals_raise_the_clients_own_errors(
    client: openai.OpenAI, fields: dict[str, Any], kind: type[openai.APIStatusError]
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": QUESTION, **fields})
    assert isinstance(caught.value.body, dict)
    assert set(caught.value.body) == {"message", "type", "param", "code"}


async def test_many_streams_at_once_and_some_are_left(server: Server) -> None:
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", max_retries=0)

    async def follow(number: int, leave_after: int | None) -> str:
        stream: Any = await client.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=40, temperature=1, seed=number % 3,
            stream=True, extra_body={"ignore_eos": True},
        )  # fmt: skip
        text = ""
        async with stream:
            async for chunk in stream:
                text += chunk.choices[0].delta.content or "" if chunk.choices else ""
                if leave_after is not None and len(text) > leave_after:
                    break
        return text

    async with client:
        whole = await asyncio.gather(*(follow(i, None) for i in range(3)))
        cancelled = asyncio.create_task(follow(1, None))
        mixed = asyncio.gather(*(follow(i, 5 if i % 2 else None) for i in range(8)))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        for number, text in enumerate(await mixed):
            expected = whole[number % 3]
            assert text == expected or (number % 2 and expected.startswith(text))
        assert [model.id async for model in client.models.list()] == [MODEL]
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("other")
    server.wait_idle()


def test_every_endpoint_documents_its_errors(server: Server) -> None:
    document = httpx.get(f"{server.url}/openapi.json").json()
    answers = {"400", "404", "408", "413", "429", "503", "504"}
    for path, statuses in {
        "/v1/chat/completions": answers,
        "/v1/completions": answers,
        "/tokenize": answers - {"503"},  # loading its images may take too long
        "/detokenize": answers - {"503", "504"},
    }.items():
        responses = document["paths"][path]["post"]["responses"]
        assert set(responses) == {"200", *statuses}
        for status in statuses:
            schema = responses[status]["content"]["application/json"]["schema"]
            # One that ran out of time tells its usage, too.
            assert schema["$ref"].endswith("/DeadlineBody" if status == "504" else "/ErrorBody")
