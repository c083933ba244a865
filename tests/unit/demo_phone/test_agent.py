"""The agent's client over HTTP: the bodies that the contract fixes, the streamed text, errors."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from hearth.client.wire import Target
from hearth.core.errors import RemoteError
from hearth.demo_phone.agent import AgentClient

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]


class Server(ThreadingHTTPServer):
    """Answers every request with `status` and `answer`; keeps what it was sent."""

    status = 200
    answer = b""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    @property
    def target(self) -> Target:
        return Target(f"http://127.0.0.1:{self.server_port}/v1")


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        length = int(self.headers["Content-Length"])
        server.bodies.append(json.loads(self.rfile.read(length)))
        server.keys.append(self.headers["Authorization"])
        self.send_response(server.status)
        self.send_header("Content-Length", str(len(server.answer)))
        self.end_headers()
        self.wfile.write(server.answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base's name
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as one:
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def events(*payloads: Any) -> bytes:
    texts = [one if isinstance(one, str) else json.dumps(one) for one in payloads]
    return "".join(f"data: {text}\n\n" for text in texts).encode()


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields}]}


def test_the_check_sends_what_the_contract_says(server: Server) -> None:
    choice = {"message": {"content": "Hello"}}
    server.answer = json.dumps({"choices": [choice]}).encode()
    with AgentClient(server.target) as client:
        assert client.check() == "Hello"
    assert server.keys == ["Bearer EMPTY"]
    assert server.bodies == [
        {
            "model": "autoglm-phone-9b",
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 5,
            "temperature": 0.0,
            "stream": False,
        }
    ]


def test_a_check_without_choices_is_an_error(server: Server) -> None:
    server.answer = b'{"choices": []}'
    with AgentClient(server.target) as client, pytest.raises(RemoteError):
        client.check()


def test_a_step_sends_what_the_contract_says_and_reads_content_alone(server: Server) -> None:
    server.answer = events(
        delta(role="assistant"),
        delta(content="<think>a"),
        {"choices": []},
        delta(reasoning_content="lost"),
        delta(content=None),
        delta(content="</think>"),
        "[DONE]",
    )
    with AgentClient(server.target, "phone") as client:
        assert "".join(client.reply(MESSAGES)) == "<think>a</think>"
    assert server.bodies == [
        {
            "model": "phone",
            "messages": MESSAGES,
            "max_tokens": 3000,
            "temperature": 0.0,
            "top_p": 0.85,
            "frequency_penalty": 0.2,
            "stream": True,
        }
    ]


def test_a_refusal_says_why(server: Server) -> None:
    server.status = 400
    server.answer = b'{"error": {"message": "the context is too long"}}'
    with AgentClient(server.target) as client, pytest.raises(RemoteError, match="too long"):
        list(client.reply(MESSAGES))


def test_an_error_in_the_stream_is_raised(server: Server) -> None:
    server.answer = events({"error": {"message": "the engine is gone"}})
    with AgentClient(server.target) as client, pytest.raises(RemoteError, match="is gone"):
        list(client.reply(MESSAGES))


def test_a_stream_without_its_end_is_an_error(server: Server) -> None:
    server.answer = events(delta(content="a"))
    with AgentClient(server.target) as client, pytest.raises(RemoteError, match="too early"):
        list(client.reply(MESSAGES))


def test_a_server_that_is_not_there_is_an_error_with_its_address() -> None:
    with (
        AgentClient(Target("http://127.0.0.1:9")) as client,
        pytest.raises(RemoteError, match=r"127\.0\.0\.1:9"),
    ):
        client.check()
