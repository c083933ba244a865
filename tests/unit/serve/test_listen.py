"""The address: taken early, refused clearly, printed so that it works."""

from __future__ import annotations

import socket

import pytest
from fastapi import FastAPI

from hearth.core.errors import ConfigError, PortInUseError
from hearth.serve.http.server import uvicorn_config
from hearth.serve.listen import BACKLOG, bind_socket, is_loopback, url_of


def test_a_port_in_use_is_named_with_what_to_do() -> None:
    with bind_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=str(port)) as caught:
            bind_socket("127.0.0.1", port)
        assert f"--port {port + 1}" in str(caught.value.hint)


def test_the_socket_listens_at_once() -> None:
    with (
        bind_socket("localhost", 0) as sock,
        socket.create_connection(sock.getsockname(), timeout=5) as client,  # nobody accepts yet
        sock.accept()[0] as accepted,
    ):
        assert accepted.getpeername() == client.getsockname()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", "a" * 300])
def test_an_address_that_is_not_ours_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="--host"):
        bind_socket(host, 0)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("example.org", "http://example.org:80"),
    ],
)
def test_the_url_is_one_that_a_client_can_use(host: str, url: str) -> None:
    assert url_of(host, 80) == url


def test_loopback_is_recognized() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("localhost")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")


def test_the_server_keeps_the_backlog_that_the_socket_has() -> None:
    # Uvicorn listens again on the socket that it is given, with a backlog of its own.
    assert uvicorn_config(FastAPI()).backlog == BACKLOG
