"""HTTP to a hub: what is tried again, how long is waited, and what each failure is called.

    no connection, name not found     once more, then UnreachableError
    no byte in time, connection cut   again, with backoff, as long as bytes come in between
    408, 425, 5xx                     again, with backoff or as Retry-After says; UnreachableError
    429                               the same, at the end RemoteError: the hub did answer
    401, 403, 404, other              never again: the source explains

Credentials go to the hub's own origin only: httpx drops them where a redirect leads elsewhere, and
they are not sent without encryption, except to this machine itself.
"""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from hearth.core.errors import ConfigError, RemoteError, UnreachableError
from hearth.core.units import format_bytes

_RETRIED = frozenset((408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524))
_TOO_MANY = 429
_MAX_BACKOFF_S = 30.0
_MAX_EXPLANATION = 300
MAX_LIST_BYTES = 64 << 20
MAX_REFUSAL_BYTES = 1 << 20
_OF_BODY = ("content-encoding", "content-length", "transfer-encoding")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Retry:
    """How patient a pull is. `attempts` counts failures in a row without a byte of progress."""

    attempts: int = 5
    connect_attempts: int = 2
    backoff_s: float = 1.0
    longest_wait_s: float = 300.0  # of a Retry-After that is obeyed
    timeout_s: float = 30.0  # without a byte
    connect_timeout_s: float = 10.0


class Attempts:
    """Counts what has failed in a row, and waits in between. For one thread."""

    def __init__(
        self,
        retry: Retry,
        what: str,
        note: Callable[[str], None],
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._retry = retry
        self._pause = pause
        self._what = what
        self._note = note
        self._num_failed = 0

    def progressed(self) -> None:
        """Bytes came: what failed before does not count any more."""
        self._num_failed = 0

    def failed(self, error: RemoteError, wait_s: float | None = None) -> None:
        """Waits before the next attempt, `wait_s` where a server asked for it.

        Raises the error when there is no further one.
        """
        self._num_failed += 1
        limit = self._retry.attempts
        if isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout):
            limit = min(limit, self._retry.connect_attempts)
        if self._num_failed >= limit:
            raise error
        if wait_s is None:
            ceiling = self._retry.backoff_s * 2 ** (self._num_failed - 1)
            # Jitter, so that many machines that were cut off together do not return together.
            wait_s = min(_MAX_BACKOFF_S, ceiling * random.uniform(0.5, 1.0))
        elif wait_s > self._retry.longest_wait_s:
            # Of its own type: where there is no answer for so long, another source may be asked.
            raise type(error)(
                f"{error.message}, and asks to wait {wait_s:.0f} s (at most "
                f"{self._retry.longest_wait_s:.0f} s are waited)",
                hint=f"try again in {wait_s / 60:.0f} min; what was downloaded is kept",
                status=error.status,
            ) from error
        self._note(f"{self._what}: {error.message}; again in {wait_s:.1f} s")
        self._pause(wait_s)


class Transport:
    """One connection pool; may be used by several threads at once."""

    def __init__(self, retry: Retry, note: Callable[[str], None]) -> None:
        """Raises ConfigError for a proxy or certificates of the environment that do not work."""
        self.retry = retry
        self.note = note
        timeout = httpx.Timeout(retry.timeout_s, connect=retry.connect_timeout_s)
        # Bytes are wanted as they are: their number and their checksum are compared.
        headers = {"User-Agent": "hearth", "Accept-Encoding": "identity"}
        try:
            self._client = httpx.Client(timeout=timeout, headers=headers, follow_redirects=True)
        except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
            raise ConfigError(
                f"the environment's settings of HTTP cannot be used: {error}",
                hint="see HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR",
            ) from error

    def close(self) -> None:
        """Closes all connections."""
        self._client.close()

    def get(self, url: str, headers: Mapping[str, str]) -> httpx.Response:
        """The whole answer, of whatever status that is not tried again.

        Raises UnreachableError, and RemoteError after too many 429, and for an endless answer.
        """
        attempts = Attempts(self.retry, "list of files", self.note)
        while True:
            try:
                with self._open(url, headers) as response:
                    return read_whole(response, MAX_LIST_BYTES)
            except RetryableError as failure:
                attempts.failed(failure.error, failure.wait_s)

    @contextmanager
    def stream(self, url: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """An answer whose body is still to be read. Raises RetryableError for what may pass."""
        with self._open(url, headers) as response:
            yield response

    @contextmanager
    def _open(self, url: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        try:
            with self._client.stream("GET", url, headers=dict(headers)) as response:
                if response.status_code in _RETRIED:
                    raise RetryableError(_refused(response), _retry_after(response))
                yield response
        except (httpx.TransportError, httpx.DecodingError) as error:
            unreachable = _unreachable(url, error)
            unreachable.__cause__ = error
            raise RetryableError(unreachable, None) from error
        except (httpx.TooManyRedirects, httpx.InvalidURL) as error:
            raise RemoteError(f"{_host(url)} cannot be asked: {error}") from error


class RetryableError(Exception):
    """A failure that may pass, as the error that it is if it does not."""

    def __init__(self, error: RemoteError, wait_s: float | None) -> None:
        super().__init__(error.message)
        self.error = error
        self.wait_s = wait_s


def read_whole(response: httpx.Response, max_bytes: int) -> httpx.Response:
    """An answer that is still to be read, with its body. Raises RemoteError for a longer one."""
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > max_bytes:
            raise RemoteError(
                f"{_host(str(response.request.url))} sends an answer of more than "
                f"{format_bytes(max_bytes)} where a short one was asked for",
                hint="is it a hub? Name another --source",
                status=response.status_code,
            )
    headers = [(k, v) for k, v in response.headers.multi_items() if k.lower() not in _OF_BODY]
    return httpx.Response(
        response.status_code,
        headers=headers,
        content=bytes(body),
        request=response.request,
        history=response.history,
    )


def checked_token(token: str | None, setting: str) -> str | None:
    """The token, where it can be one. Raises ConfigError for characters that no token has."""
    if token and not (token.isascii() and token.isprintable()):
        raise ConfigError(
            f"{setting} holds characters that no token has", hint="set it, or log in, again"
        )
    return token


def may_carry_secrets(url: str) -> bool:
    """Whether a token may be sent there: over TLS, or within this machine."""
    parsed = httpx.URL(url)
    return parsed.scheme == "https" or parsed.host in _LOOPBACK


def was_led_away(response: httpx.Response) -> bool:
    """Whether another host than the one that was asked gave this answer."""
    first = response.history[0].request.url if response.history else response.request.url
    return first.netloc != response.request.url.netloc


def led_away_error(response: httpx.Response) -> UnreachableError:
    """The refusal of a host that a hub sent us to: not the hub's own word on the model."""
    first = response.history[0].request.url
    status = response.status_code
    return UnreachableError(
        f"{_host(str(response.request.url))}, where {_host(str(first))} keeps the file, answers "
        f"{status} {response.reason_phrase}".rstrip(),
        hint="try again later, or name another --source",
        status=status,
    )


def explanation(response: httpx.Response) -> str:
    """What a server says about a refusal, in one line; empty where it says nothing readable."""
    said = response.headers.get("X-Error-Message", "")
    if not said and "json" in response.headers.get("Content-Type", ""):
        try:
            found = response.json()
        except (ValueError, RecursionError):
            return ""
        if isinstance(found, dict):
            said = found.get("error") or found.get("Message") or found.get("message") or ""
    line = " ".join(str(said).split())
    return "".join(c for c in line if c.isprintable())[:_MAX_EXPLANATION]


def _refused(response: httpx.Response) -> RemoteError:
    status = response.status_code
    host = _host(str(response.request.url))
    if status == _TOO_MANY:
        return RemoteError(
            f"{host} answers 429: too many requests",
            hint="wait some minutes; with a token of your own (hf auth login) the limit is higher",
            status=status,
        )
    return UnreachableError(
        f"{host} answers {status} {response.reason_phrase}".rstrip(),
        hint="try again later, or name another --source",
        status=status,
    )


def _unreachable(url: str, error: httpx.HTTPError) -> UnreachableError:
    if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError):
        said = f"{_host(url)} cannot be reached: {_reason(error)}"
    elif isinstance(error, httpx.TimeoutException):
        said = f"{_host(url)} sent nothing in time"
    else:
        said = f"the connection to {_host(url)} was cut: {_reason(error)}"
    return UnreachableError(
        said, hint="check the network and the proxy settings, or name another --source"
    )


def _reason(error: httpx.HTTPError) -> str:
    """What the operating system said; some errors say nothing."""
    return str(error) or type(error).__name__


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait (RFC 9110, 10.2.3): a number or a date."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _host(url: str) -> str:
    parsed = httpx.URL(url)
    return parsed.host if parsed.port is None else f"{parsed.host}:{parsed.port}"
