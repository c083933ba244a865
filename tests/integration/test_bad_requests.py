"""Requests that cannot be answered: a clear error each, and the server alive after all of them."""

from __future__ import annotations

import fcntl
import json
import socket
import termios
import time
from array import array
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from tests.integration.server import Server

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(autouse=True)
def _alive_afterwards(server: Server) -> Any:
    yield
    assert server.health()["status"] == "UP"
    assert server.chat("Hi", max_tokens=2).status_code == 200
    server.wait_idle()


def post(server: Server, content: bytes) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", content=content, timeout=60)


def message_of(response: httpx.Response, status: int = 400) -> str:
    assert response.status_code == status, response.text
    message: str = response.json()["error"]["message"]
    return message


def test_context_overflow_gives_both_numbers(server: Server) -> None:
    message = message_of(server.chat("Hi", max_tokens=100_000))
    assert "max_tokens 100,000" in message
    assert "4,096" in message


def test_a_megabyte_prompt(server: Server) -> None:
    for text in ("你好 world " * 120_000, "a" * 2_000_000, "\n" * 1_000_000):
        message = message_of(server.chat(text))
        assert "4,096 tokens" in message


def test_a_body_beyond_32_megabytes(server: Server) -> None:
    message = message_of(post(server, b"x" * (33 << 20)), 413)
    assert "32.0 MiB" in message


def test_invalid_utf8_and_broken_json(server: Server) -> None:
    assert "not valid UTF-8" in message_of(post(server, b'{"messages": "\xff\xfe"}'))
    assert "not valid JSON" in message_of(post(server, b'{"messages": '))
    assert "not valid JSON" in message_of(post(server, b'{"a": "\\ud83d"}'))


@pytest.mark.parametrize(
    "fields",
    [{"temperature": -1}, {"temperature": "hot"}, {"max_tokens": -1}, {"top_p": 2}, {"seed": -3}],
)
def test_wrong_types_and_negative_values(server: Server, fields: dict[str, Any]) -> None:
    (name,) = fields
    message = message_of(server.chat("Hi", **fields))
    assert message.startswith(f"{name}: ")
    assert "permitted:" in message


def test_the_openai_client_raises_its_own_errors(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", max_retries=0)
    with pytest.raises(openai.NotFoundError, match="served: 'hearth-demo'"):
        client.chat.completions.create(model="gpt-4o", messages=HI)  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="hearth-demo",
            messages=HI,  # type: ignore[arg-type]
            max_tokens=10**6,
        )
    assert caught.value.code == "context_length_exceeded"


def test_a_model_of_text_refuses_images(endless_server: Server) -> None:
    content = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    assert "this model takes no images" in message_of(endless_server.chat(content))


def test_what_is_not_http_at_all(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01 not http\r\n\r\n")
        assert b"400" in sock.recv(1000)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"
        )


def test_special_characters_survive_the_round_trip(server: Server) -> None:
    text = 'quotes " and \\ and \u2028 and \x00 and 👨‍👩‍👧‍👦'
    assert server.chat(text, max_tokens=2).status_code == 200
    body = json.dumps({"messages": [{"role": "user", "content": text}], "max_tokens": 2})
    assert post(server, body.encode()).status_code == 200


def test_a_body_of_a_million_values_holds_nobody_up(server: Server) -> None:
    """Another process does the work, by the processor's time, and the server does not wait for it:
    others are answered while that process stands still with the body before it.
    """
    values = ",".join(["[]"] * 1_000_000)
    body = f'{{"prompt": "hearth", "max_tokens": 1, "x": [{values}]}}'.encode()
    url = f"{server.url}/v1/completions"
    httpx.post(url, content=body[:30_000] + b"0" + b",0" * 20_000, timeout=60)  # the child starts
    front_end = psutil.Process(server.popen.pid)
    (child,) = [c for c in front_end.children() if "body_worker" in c.cmdline()[-1]]
    before = [_processor_s(process) for process in (front_end, child)]
    with ThreadPoolExecutor(1) as thread:
        child.suspend()
        large = thread.submit(httpx.post, url, content=body, timeout=60)
        try:
            while _num_unread(child) < 1000:  # so few are the name of the schema
                assert not large.done()
                time.sleep(0.01)
            assert httpx.get(f"{server.url}/version", timeout=60).status_code == 200
            assert not large.done()
        finally:
            child.resume()
    assert [warning["param"] for warning in large.result().json()["warnings"]] == ["x"]
    front_end_s, child_s = (
        _processor_s(process) - start
        for process, start in zip((front_end, child), before, strict=True)
    )
    assert front_end_s < child_s / 5  # measured: 0.02 of 0.52 s


def _processor_s(process: psutil.Process) -> float:
    """Of all its threads: any of them could hold the interpreter's lock."""
    times = process.cpu_times()
    return times.user + times.system


def _num_unread(process: psutil.Process) -> int:
    """Bytes that wait in the pipe that is a process's standard input."""
    unread = array("i", [0])
    with Path(f"/proc/{process.pid}/fd/0").open("rb", buffering=0) as pipe:
        fcntl.ioctl(pipe, termios.FIONREAD, unread)
    return unread[0]
