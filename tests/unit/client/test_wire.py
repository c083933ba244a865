"""What servers say, in the forms that they say it in."""

from __future__ import annotations

import pytest

from hearth.client.wire import Target, encoded, parse_event, refusal
from hearth.core.errors import RemoteError


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b'{"choices": [{"delta": {"content": "a"}}]}', "a"),
        (b'{"choices": [{"delta": {"content": null, "reasoning_content": "b"}}]}', "b"),
        (b'{"choices": [{"text": "c", "finish_reason": "stop"}]}', "c"),
        (b'{"choices": []}', ""),
    ],
)
def test_the_text_of_an_event(payload: bytes, text: str) -> None:
    assert parse_event(payload).text == text


@pytest.mark.parametrize("payload", [b"{", b"[1]", b'{"error": {"message": "no"}}'])
def test_what_is_no_event_is_an_error(payload: bytes) -> None:
    with pytest.raises(RemoteError):
        parse_event(payload)


@pytest.mark.parametrize(
    "content",
    [b'{"error": {"message": "full"}}', b'{"error": "full"}', b'{"message": "full"}', b"full"],
)
def test_a_refusal_says_what_the_server_said(content: bytes) -> None:
    error = refusal(429, content)
    assert error.status == 429
    assert "HTTP 429" in error.message
    assert "full" in error.message


def test_an_address_with_v1_is_the_same_server() -> None:
    assert Target("http://h:1/v1/").root == Target("http://h:1").root == "http://h:1"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://[::1", "http://h:99999", ""])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(RemoteError, match="not an address"):
        Target(url)


@pytest.mark.parametrize("key", ["ключ", "a\r\nHost: b"])
def test_a_key_that_no_header_can_hold_is_refused(key: str) -> None:
    with pytest.raises(RemoteError, match="API key"):
        Target("http://h:1", key)


@pytest.mark.parametrize("value", ["\udcff", float("nan")])
def test_what_is_not_json_is_not_sent(value: object) -> None:
    with pytest.raises(RemoteError, match="cannot be sent"):
        encoded({"prompt": value})
