"""Requests that run out of time, and clients that all leave at once, against the real server."""

from __future__ import annotations

import json
import signal
import socket
import time
from pathlib import Path

import httpx
import openai
import pytest
from tests.integration.server import ENDLESS, ENDLESS_TOKENS, Server

QUESTION = "Count for ever."


def never_ending(**fields: object) -> dict[str, object]:
    """For a server on the endless model."""
    return {
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": ENDLESS_TOKENS,
        "ignore_eos": True,
        "seed": 1,
        **fields,
    }


@pytest.fixture
def client(endless_server: Server) -> openai.OpenAI:
    """Retries as it does."""
    return openai.OpenAI(base_url=f"{endless_server.url}/v1", api_key="EMPTY")


def test_the_openai_client_gets_a_504_with_usage_and_does_not_retry(
    client: openai.OpenAI, endless_server: Server
) -> None:
    before = endless_server.health()["engine"]["generated_tokens"]
    model, sent = client.models.list().data[0].id, list[httpx.Request]()
    counting = openai.DefaultHttpxClient(event_hooks={"request": [sent.append]})
    start = time.monotonic()
    with counting, pytest.raises(openai.InternalServerError) as caught:
        client.with_options(http_client=counting).chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=ENDLESS_TOKENS,
            temperature=2,  # nothing repeats, so that steps have no drafts
            seed=1,
            extra_body={"ignore_eos": True, "timeout": 0.4},
        )
    assert time.monotonic() - start >= 0.4
    assert len(sent) == 1
    assert caught.value.status_code == 504
    assert caught.value.code == "deadline_exceeded"
    usage = caught.value.response.json()["usage"]
    assert usage["prompt_tokens"] > 0
    assert usage["completion_tokens"] > 0
    endless_server.wait_idle(timeout=2)
    done = endless_server.health()["engine"]["generated_tokens"] - before
    assert usage["completion_tokens"] <= done <= usage["completion_tokens"] + 8


def test_the_openai_client_gets_an_error_in_the_middle_of_a_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=ENDLESS_TOKENS,
        stream=True,
        extra_body={"ignore_eos": True},
        extra_headers={"X-Request-Timeout": "0.4"},
    )
    assert next(stream).choices[0].delta.role == "assistant"
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert caught.value.code == "deadline_exceeded"


def test_a_request_that_waits_too_long_is_dropped_without_a_step(endless_server: Server) -> None:
    with httpx.Client(base_url=endless_server.url, timeout=30) as http:
        sockets = [_send(endless_server, never_ending(stream=True)) for _ in range(4)]
        while endless_server.health()["running"] < 4:
            time.sleep(0.01)
        start = time.monotonic()
        response = http.post("/v1/chat/completions", json=never_ending(timeout=0.3))
        elapsed = time.monotonic() - start
        assert response.status_code == 504
        assert response.json()["usage"]["completion_tokens"] == 0
        assert 0.3 <= elapsed < 0.8
        assert endless_server.health()["waiting"] == 0
        for sock in sockets:
            sock.close()
    endless_server.wait_idle(timeout=2)
    assert endless_server.health()["engine"]["kv_blocks_used"] == 0


def test_clients_that_wait_and_leave_are_gone_at_once(endless: Path, tmp_path: Path) -> None:
    """A storm: many more than can run, all of which leave together."""
    with Server(tmp_path, str(endless), *ENDLESS) as server:
        sockets = [_send(server, never_ending(stream=bool(i % 2))) for i in range(80)]
        _wait_for_counts(server, 4, 76)
        for sock in sockets:
            sock.close()
        start = time.monotonic()
        server.wait_idle(timeout=3)
        assert time.monotonic() - start < 2.0
        assert server.health()["engine"]["kv_blocks_used"] == 0
        assert server.ask("What is hearth?", max_tokens=8)
        assert server.stop() == 0
        assert "Traceback" not in server.stderr


def test_the_servers_own_limit_ends_what_asks_for_more(endless: Path, tmp_path: Path) -> None:
    with (
        Server(tmp_path, str(endless), *ENDLESS, "--request-timeout", "1") as bounded,
        httpx.Client(base_url=bounded.url, timeout=30) as http,
    ):
        for asked in ({}, {"timeout": 60}):
            start = time.monotonic()
            response = http.post("/v1/chat/completions", json=never_ending(**asked))
            assert time.monotonic() - start >= 1
            assert response.status_code == 504, response.text
            assert response.headers["x-should-retry"] == "false"
            assert response.json()["error"]["code"] == "deadline_exceeded"
            assert response.json()["usage"]["prompt_tokens"] > 0
            assert response.json()["usage"]["completion_tokens"] < ENDLESS_TOKENS


def test_a_refusal_says_why_and_when_to_come_back(endless_server: Server) -> None:
    sockets: list[socket.socket] = []
    for running, waiting in ((1, 0), (2, 0), (3, 0), (4, 0), (4, 1), (4, 2)):
        sockets.append(_send(endless_server, never_ending(stream=True)))
        _wait_for_counts(endless_server, running, waiting)
    body = never_ending()
    refused = httpx.post(f"{endless_server.url}/v1/chat/completions", json=body, timeout=30)
    _wait_for_counts(endless_server, 4, 2)  # nobody had to make room
    for sock in sockets:
        sock.close()
    endless_server.wait_idle()
    assert refused.status_code == 429, refused.text
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "max_queued_requests 2" in refused.json()["error"]["message"]


def _wait_for_counts(server: Server, running: int, waiting: int) -> None:
    deadline = time.monotonic() + 10
    while ((health := server.health())["running"], health["waiting"]) != (running, waiting):
        assert time.monotonic() < deadline, health
        time.sleep(0.01)


def _send(server: Server, body: dict[str, object]) -> socket.socket:
    content = json.dumps(body)
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
    sock.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n{content}".encode())
    return sock


def test_a_shutdown_with_a_full_queue_ends_every_answer_once(endless: Path, tmp_path: Path) -> None:
    with Server(tmp_path, str(endless), *ENDLESS, "--shutdown-timeout", "0.3") as full:
        sockets = [_send(full, never_ending(stream=True)) for _ in range(40)]
        _wait_for_counts(full, 4, 36)
        start = time.monotonic()
        full.popen.send_signal(signal.SIGTERM)
        answers = [_read_all(sock) for sock in sockets]
        assert full.popen.wait(20) == 0
        assert time.monotonic() - start < 10
        assert "Traceback" not in full.stderr
    for answer in answers:
        assert answer.count(b"shutting down") == 1, answer[-300:]
        assert answer.count(b"data: [DONE]") == 1


def _read_all(sock: socket.socket) -> bytes:
    with sock:
        pieces = iter(lambda: sock.recv(1 << 16), b"")
        return b"".join(pieces)
