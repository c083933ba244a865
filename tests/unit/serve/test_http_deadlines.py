"""A client's timeout: where it is named, what it becomes, and how an answer ends by it."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest
from tests.unit.serve.fake_engine import FakeEngine, client_for, toy_model

from hearth.core.errors import OverloadedError
from hearth.engine.drain import MAX_WAIT_S, NUM_ENDINGS, DrainRate
from hearth.serve.app import create_app
from hearth.serve.http.deadlines import TIMEOUT_HEADER
from hearth.serve.pipeline import Call, Pipeline

CHATS, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHATS: {"messages": [{"role": "user", "content": "Hi"}]},
    COMPLETIONS: {"prompt": "Hi", "max_tokens": 9},
}
both = pytest.mark.parametrize("url", [CHATS, COMPLETIONS])


def toy() -> FakeEngine:
    return FakeEngine(toy_model().text.tokenizer, "hello world " * 4)


@both
@pytest.mark.parametrize(
    ("field", "header", "expected"),
    [(None, None, None), (5, None, 5), (None, "2.5", 2.5), (5, "9", 5), (9.5, "5", 5)],
)
async def test_the_shorter_of_both_counts(
    url: str, field: float | None, header: str | None, expected: float | None
) -> None:
    engine, model = toy(), toy_model()
    headers = {} if header is None else {TIMEOUT_HEADER: header}
    body = BODIES[url] | ({} if field is None else {"timeout": field})
    before = time.monotonic()
    async with client_for(engine, model) as client:
        response = await client.post(url, json=body, headers=headers)
    assert response.status_code == 200, response.text
    assert "warnings" not in response.json()
    deadline = engine.submitted[0].deadline
    if expected is None:
        assert deadline == 0
    else:
        assert before + expected <= deadline <= time.monotonic() + expected


@pytest.mark.parametrize(
    ("server", "client", "expected"), [(0, None, 0), (0, 3, 3), (7, None, 7), (7, 3, 3), (7, 30, 7)]
)
def test_the_servers_limit_bounds_what_a_client_may_ask(
    server: float, client: float | None, expected: float
) -> None:
    pipeline = Pipeline(toy(), toy_model(), request_timeout_s=server)
    job = pipeline.job(Call(timeout_s=client, arrived=100.0), (1, 2), "r")
    assert job.request.deadline == (100.0 + expected if expected else 0)


@both
@pytest.mark.parametrize(
    ("field", "header"),
    [(0, None), (-1, None), ("5", None), (1e9, None), (None, "0"), (None, "soon"), (None, "nan")],
)
async def test_another_timeout_is_refused(url: str, field: object, header: str | None) -> None:
    headers = {} if header is None else {TIMEOUT_HEADER: header}
    body = BODIES[url] | ({} if field is None else {"timeout": field})
    async with client_for(toy(), toy_model()) as client:
        response = await client.post(url, json=body, headers=headers)
    assert response.status_code == 400
    error = response.json()["error"]
    assert "seconds above 0" in error["message"]
    assert error["param"] == ("timeout" if header is None else TIMEOUT_HEADER)


@both
@pytest.mark.parametrize("num_before", [0, 3])
async def test_a_whole_answer_that_runs_out_of_time_is_a_504_with_usage(
    url: str, num_before: int
) -> None:
    engine, model = toy(), toy_model()
    engine.expire_after = num_before
    async with client_for(engine, model) as client:
        response = await client.post(url, json=BODIES[url])
    assert response.status_code == 504
    assert response.headers["x-should-retry"] == "false"
    body = response.json()
    assert body["error"]["code"] == "deadline_exceeded"
    assert body["usage"]["completion_tokens"] == num_before
    assert body["usage"]["prompt_tokens"] > 0
    assert not engine.running


@both
async def test_a_stream_that_runs_out_of_time_ends_with_the_error_and_done(url: str) -> None:
    engine, model = toy(), toy_model()
    engine.expire_after = 3
    async with client_for(engine, model) as client:
        response = await client.post(url, json=BODIES[url] | {"stream": True})
    *_, error, done = response.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    event = json.loads(error.removeprefix("data: "))
    assert event["error"]["code"] == "deadline_exceeded"
    assert event["usage"]["completion_tokens"] == 3


@both
@pytest.mark.parametrize(("wait_s", "header"), [(None, "1"), (0.2, "1"), (7.1, "8")])
async def test_a_refusal_says_when_to_come_back_before_it_does_any_work(
    url: str, wait_s: float | None, header: str
) -> None:
    engine, model = toy(), toy_model()
    engine.submit_error = OverloadedError("full", retry_after_s=wait_s)
    async with client_for(engine, model) as client:
        response = await client.post(url, json=BODIES[url] | {"max_tokens": 10**6})
    assert response.status_code == 429
    assert response.headers["retry-after"] == header


@both
async def test_the_application_takes_the_servers_limit(url: str) -> None:
    engine = toy()
    transport = httpx.ASGITransport(create_app(engine, toy_model(), request_timeout_s=50.0))
    before = time.monotonic()
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.post(url, json=BODIES[url])
    assert response.status_code == 200, response.text
    assert before + 50 <= engine.submitted[0].deadline <= time.monotonic() + 50


def test_the_drain_rate_is_that_of_the_last_endings_of_a_busy_period() -> None:
    now = 1000.0
    drain = DrainRate(lambda: now)
    drain.note_busy()
    now += 4
    assert drain.seconds_until(2) == 8  # nothing has ended in 4 s: one is due now
    for _ in range(3 * NUM_ENDINGS):
        now += 0.25
        drain.note_end()
    assert drain.seconds_until(40) == pytest.approx(10, rel=0.03)
    assert drain.seconds_until(1) == 1
    assert drain.seconds_until(10**6) == MAX_WAIT_S
    now += 3600
    drain.note_busy()
    now += 0.5
    assert drain.seconds_until(4) == 2, "the idle hour does not count"
