"""The real server with real clients: answers, streams, stop strings, and clients that leave."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest
from tests.integration.server import (
    ENDLESS,
    ENDLESS_TOKENS,
    SMALL,
    Server,
    command,
    environment,
    free_port,
)

MODEL = "hearth-demo"
LONG = "Count: one two three four five six seven"  # the answer is cut by max_tokens anyway


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", max_retries=0)


def test_the_openai_client_gets_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "What is hearth?"}], temperature=0
    )
    assert "hearth" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 1


def test_the_openai_client_streams_the_same_answer(client: openai.OpenAI, server: Server) -> None:
    for question in ("What is hearth?", "用一句话说明hearth", "🙂?"):
        chunks = list(
            client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=40,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == server.ask(question, max_tokens=40)
        assert chunks[-1].usage is not None
        assert "\ufffd" not in text


def test_a_seed_repeats_an_answer_and_another_changes_it(server: Server) -> None:
    def answers(seed: int) -> str:
        return server.ask("Hi", temperature=2, seed=seed, max_tokens=24, ignore_eos=True)

    assert answers(7) == answers(7)
    assert len({answers(seed) for seed in range(4)}) > 1


def test_a_stop_string_ends_the_answer_and_is_left_out(server: Server) -> None:
    whole = server.ask("What is hearth?")
    stop = whole[10:14]
    response = server.chat("What is hearth?", stop=[stop, "never to be seen"])
    body = response.json()
    assert body["choices"][0]["message"]["content"] == whole[: whole.index(stop)]
    assert body["choices"][0]["finish_reason"] == "stop"
    whole_usage = server.chat("What is hearth?").json()["usage"]
    assert body["usage"]["completion_tokens"] < whole_usage["completion_tokens"]
    server.wait_idle()


def test_max_tokens_cuts_the_answer(server: Server) -> None:
    body = server.chat("What is hearth?", max_tokens=3).json()
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 3


def test_a_shared_beginning_is_taken_from_the_cache(server: Server) -> None:
    history = "hearth serves models on hardware that people own. " * 10
    server.ask(history, max_tokens=2)
    details = server.chat(history, max_tokens=2).json()["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] > 0


def _send(server: Server, stream: bool, max_tokens: int = ENDLESS_TOKENS) -> socket.socket:
    """Asks for an answer that does not end by itself, where the server is on the endless model."""
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": LONG}],
            "stream": stream,
            "max_tokens": max_tokens,
            "ignore_eos": True,
        }
    )
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    sock.sendall((head + body).encode())
    return sock


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_frees_its_sequence(endless_server: Server, stream: bool) -> None:
    sockets = [_send(endless_server, stream) for _ in range(3)]
    deadline = time.monotonic() + 10
    while endless_server.health()["running"] < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if stream:
        assert b"200 OK" in sockets[0].recv(1000)
    for sock in sockets:
        sock.close()
    endless_server.wait_idle(timeout=2)


def test_many_clients_at_once_get_what_each_gets_alone(server: Server) -> None:
    questions = ["What is hearth?", "你是谁？", "What is 3 + 4?", "Tell me who you are."] * 3
    alone = {q: server.ask(q, max_tokens=32) for q in questions}
    found: dict[int, str] = {}

    def ask(index: int) -> None:
        found[index] = server.ask(questions[index], max_tokens=32)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: alone[q] for i, q in enumerate(questions)}


def test_what_the_phone_agent_sends_is_answered(client: openai.OpenAI, server: Server) -> None:
    check = server.chat("Hi", max_tokens=5, stream=False)
    assert check.json()["choices"]
    response = client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "你是一个手机助手。"},
            {"role": "user", "content": [{"type": "text", "text": "打开设置"}]},
            {"role": "assistant", "content": "<think>a</think><answer>do()</answer>"},
            {"role": "user", "content": [{"type": "text", "text": "继续"}]},
        ],
        max_tokens=30,
        temperature=0.0,
        top_p=0.85,
        frequency_penalty=0.2,
        stream=True,
    )
    chunks = list(response.parse())
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert "frequency_penalty" not in server.stderr


def test_the_banners_curl_line_works_as_printed(server: Server) -> None:
    result = subprocess.run(
        ["/bin/sh", "-c", server.curl_line()], capture_output=True, text=True, check=True
    )
    assert "hearth" in json.loads(result.stdout)["choices"][0]["message"]["content"]


def test_the_documentation_page_is_served_locally(server: Server) -> None:
    page = httpx.get(f"{server.url}/docs").text
    assert "swagger-ui-bundle.js" in page
    assert "http://" not in page
    assert "https://" not in page


def _end_with_running_answer(server: Server, signals: int) -> bytes:
    """Signals a server that is streaming; returns what its client received."""
    with _send(server, stream=True) as sock:
        received = sock.recv(1000)
        for _ in range(signals):
            server.popen.send_signal(signal.SIGINT)
            time.sleep(0.3)
        return received + _rest(sock)


def _rest(sock: socket.socket) -> bytes:
    received = b""
    while data := sock.recv(65536):
        received += data
    return received


@pytest.mark.parametrize(("grace", "signals"), [("0.2", 1), ("60", 2)])
def test_a_signal_ends_running_answers_in_order(
    endless: Path, tmp_path: Path, grace: str, signals: int
) -> None:
    with Server(tmp_path, str(endless), *ENDLESS, "--shutdown-timeout", grace) as server:
        received = _end_with_running_answer(server, signals)
        assert server.popen.wait(10) == 0
        assert b"shutting down" in received
        assert received.count(b"data: [DONE]") == 1
        assert "Traceback" not in server.stderr


def test_a_running_answer_may_finish_within_the_grace_time(tmp_path: Path) -> None:
    """The engine stands still until the server knows of the signal: the answer cannot be over."""
    with Server(tmp_path, *SMALL, "--shutdown-timeout", "60") as server:
        os.kill(server.engine_pid, signal.SIGSTOP)
        with _send(server, stream=True, max_tokens=400) as sock:
            received = sock.recv(1000)
            server.popen.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 10
            while "for 1 requests" not in server.stderr:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            os.kill(server.engine_pid, signal.SIGCONT)
            received += _rest(sock)
        assert b'"finish_reason":"length"' in received
        assert received.count(b"data: [DONE]") == 1
        assert server.popen.wait(10) == 0


def test_the_death_of_the_engine_is_told_everywhere(endless: Path, tmp_path: Path) -> None:
    with Server(tmp_path, str(endless), *ENDLESS) as server:
        with _send(server, stream=True) as sock:
            received = sock.recv(1000)
            os.kill(server.engine_pid, signal.SIGKILL)
            deadline = time.monotonic() + 5
            while (response := httpx.get(f"{server.url}/health")).status_code == 200:
                assert time.monotonic() < deadline
            assert response.status_code == 503
            assert response.json()["status"] == "DOWN"
            assert b"engine_dead" in received + _rest(sock)
        assert server.popen.wait(10) == 6
        assert "engine_dead" in server.stderr
        assert "Traceback" not in server.stderr


def test_the_death_of_the_front_end_ends_the_engine(tmp_path: Path) -> None:
    with Server(tmp_path, *SMALL) as server:
        engine = Path(f"/proc/{server.engine_pid}")
        server.popen.kill()
        server.popen.wait()
        deadline = time.monotonic() + 5
        while engine.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize("delay_s", [0.0, 0.15, 0.4])
def test_an_interrupt_while_loading_leaves_nothing_behind(tmp_path: Path, delay_s: float) -> None:
    server = Server(tmp_path, *SMALL)
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", server.port)).close()
            break
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    time.sleep(delay_s)
    engines = _children(server.popen.pid)
    # 130 while it loads; 0 when it has become ready in the meantime.
    assert server.stop(signal.SIGINT) in (0, 130), server.stderr
    assert "Traceback" not in server.stderr
    assert not any(Path(f"/proc/{pid}").exists() for pid in engines)


def _children(pid: int) -> list[str]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return path.read_text(encoding="ascii").split()


@pytest.mark.parametrize(
    ("encoding", "is_piped"), [("ascii", False), ("utf-8", True)], ids=["ASCII", "closed pipe"]
)
def test_a_banner_that_cannot_be_printed_does_not_end_the_server(
    encoding: str, is_piped: bool
) -> None:
    port = free_port()
    popen = subprocess.Popen(
        command("--port", str(port), *SMALL),
        stdout=subprocess.PIPE if is_piped else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(PYTHONIOENCODING=encoding),
    )
    if popen.stdout is not None:
        popen.stdout.close()
    transport = httpx.HTTPTransport(retries=8)  # until the port is bound; 0, 0.5, 1, 2 … s
    try:
        with httpx.Client(transport=transport, timeout=60) as client:
            response = client.get(f"http://127.0.0.1:{port}/health")
        assert response.json()["status"] == "UP"
    finally:
        popen.send_signal(signal.SIGTERM)
        assert popen.wait(30) == 0
