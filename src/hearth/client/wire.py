"""What both kinds of client share: addresses, headers, and what a refusal or an event says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

from hearth.core.errors import RemoteError

MAX_SHOWN_CHARS = 300
_decoder = msgspec.json.Decoder()


@dataclass(frozen=True, slots=True)
class Target:
    """A server. `timeout_s` bounds the wait for the next bytes of an answer.

    Raises RemoteError for an address or a key that cannot be sent.
    """

    base_url: str
    api_key: str | None = None
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        try:
            address = urlsplit(self.root)
            is_valid = (
                address.scheme in ("http", "https") and address.hostname and address.port != 0
            )
        except ValueError:
            is_valid = False
        if not is_valid:
            raise RemoteError(
                f"{self.root!r} is not an address (permitted: http://… or https://…)",
                hint="such as --base-url http://127.0.0.1:8000",
            )
        if self.api_key and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise RemoteError(
                "the API key holds characters that a header cannot (permitted: printable ASCII)",
                hint="copy the key again",
            )

    @property
    def root(self) -> str:
        """The address without a trailing slash and without the `/v1` that many people add."""
        return self.base_url.rstrip("/").removesuffix("/v1")

    @property
    def headers(self) -> dict[str, str]:
        """Uncompressed, so that an event is read when it arrives."""
        headers = {"Accept-Encoding": "identity"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return headers


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event of a streamed answer says about one choice.

    `has_choice`: the event concerns a choice at all; `usage` comes alone, at the end.
    """

    text: str = ""
    finish_reason: str | None = None
    has_choice: bool = False
    num_prompt_tokens: int | None = None
    num_completion_tokens: int | None = None
    warnings: tuple[str, ...] = ()  # hearth's own: what the request asked for and did not get


def encoded(body: Mapping[str, Any]) -> bytes:
    """The body as JSON. Raises RemoteError for text that is not Unicode, as a shell may give it."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise RemoteError(
            f"the request cannot be sent as JSON: {error}",
            hint="write its text as UTF-8, and its numbers without nan and inf",
        ) from error


def parse_event(payload: bytes) -> Piece:
    """Reads one event of a chat or a completion; reasoning counts as text.

    Raises:
        RemoteError: the event is an error, or not what these endpoints send.
    """
    try:
        data = _decoder.decode(payload)
    except msgspec.DecodeError as error:
        raise RemoteError(f"an event of the stream is not JSON: {_shown(payload)}") from error
    if not isinstance(data, dict):
        raise RemoteError(f"an event of the stream is not an object: {_shown(payload)}")
    if data.get("error"):
        raise RemoteError(message_of(data))
    usage = data.get("usage") or {}
    counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    choices = data.get("choices") or []
    if not choices:
        return Piece("", None, False, *counts)
    choice = choices[0]
    warnings = tuple(message_of(warning) for warning in data.get("warnings") or ())
    return Piece(_text_of(choice), choice.get("finish_reason"), True, *counts, warnings)


def message_of(body: Any) -> str:
    """What an error body says, in OpenAI's form or any other."""
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message") if isinstance(error, dict) else error
    return str(message)[:MAX_SHOWN_CHARS]


def refusal(status: int, content: bytes) -> RemoteError:
    """The error for an answer that is not a success."""
    try:
        message = message_of(_decoder.decode(content))
    except msgspec.DecodeError:
        message = _shown(content)
    return RemoteError(f"HTTP {status}: {message}", status=status)


def json_of(url: str, status: int, content: bytes) -> Any:
    """A whole answer. Raises RemoteError for a refusal and for what is no JSON."""
    if not 200 <= status < 300:
        raise refusal(status, content)
    try:
        return _decoder.decode(content)
    except msgspec.DecodeError as error:
        raise RemoteError(f"{url} answers something but JSON") from error


def unreachable(target: Target, error: Exception) -> RemoteError:
    """No connection to the server."""
    return RemoteError(
        f"{target.root} cannot be reached: {str(error) or type(error).__name__}",
        hint="start a server with `hearth serve`, or name another one with --base-url",
    )


def transport_error(target: Target, error: Exception) -> RemoteError:
    """What went wrong below HTTP, by its kind: refused, timed out, cut off."""
    kind = type(error).__name__
    if kind in ("ConnectError", "ConnectTimeout"):
        return unreachable(target, error)
    return RemoteError(f"{kind}: {error}" if str(error) else kind)


def _text_of(choice: dict[str, Any]) -> str:
    delta = choice.get("delta")
    if isinstance(delta, dict):
        texts = (delta.get(key) for key in ("reasoning_content", "reasoning", "content"))
        return next((text for text in texts if text), "")
    return choice.get("text") or ""


def _shown(content: bytes) -> str:
    return repr(content[:MAX_SHOWN_CHARS].decode("utf-8", "replace"))
