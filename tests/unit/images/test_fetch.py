"""Images behind http(s) URLs: which hosts and addresses are asked, and how much is taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from hearth.core.config import MediaConfig
from hearth.core.errors import RequestError
from hearth.engine.images.fetch import MediaFetcher, is_public

PUBLIC = "93.184.216.34"
Answer = Callable[[httpx.Request], httpx.Response]


class Network:
    """Hosts with addresses, an answer for every request, and what was asked."""

    def __init__(self, answer: Answer, **addresses: list[str]) -> None:
        self.answer = answer
        self.addresses = {name.replace("_", "."): found for name, found in addresses.items()}
        self.requests: list[httpx.Request] = []

    async def resolve(self, host: str, port: int) -> list[str]:
        return self.addresses.get(host, [PUBLIC])

    def fetcher(self, *domains: str, max_bytes: int = 1000, **fields: Any) -> MediaFetcher:
        private = fields.pop("allow_private_addresses", False)
        media = MediaConfig(allowed_media_domains=domains, allow_private_addresses=private)

        def handle(request: httpx.Request) -> httpx.Response:
            self.requests.append(request)
            return self.answer(request)

        transport = httpx.MockTransport(handle)
        return MediaFetcher(media, max_bytes, resolve=self.resolve, transport=transport, **fields)


class Body(httpx.AsyncByteStream):
    """A body that comes over the network, in one piece."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"picture"


def picture(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, stream=Body(), headers={"content-type": "Image/PNG; x=1"})


async def refused(fetcher: MediaFetcher, url: str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await fetcher.fetch(url)
    return caught.value


async def test_an_allowed_host_is_asked_at_the_address_that_was_checked() -> None:
    network = Network(picture)
    found = await network.fetcher("images.example").fetch("https://Images.Example:8443/a?b=c#d")
    assert (found.data, found.media_type) == (b"picture", "image/png")
    (request,) = network.requests
    assert str(request.url) == f"https://{PUBLIC}:8443/a?b=c"
    assert request.headers["host"] == "images.example:8443"
    assert request.extensions["sni_hostname"] == "images.example"
    assert request.headers["accept-encoding"] == "identity"
    assert "cookie" not in request.headers


async def test_nothing_is_fetched_unless_the_server_says_so() -> None:
    network = Network(picture)
    error = await refused(network.fetcher(), "https://images.example/a.png")
    assert "--allowed-media-domains" in str(error.hint)
    assert network.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example/x",
        "https://images.example.evil/x",
        "https://x.images.example/x",
        "https://user:secret@images.example/x",
        "https:///x",
        "http://",
    ],
)
async def test_other_hosts_are_not_asked(url: str) -> None:
    network = Network(picture)
    error = await refused(network.fetcher("images.example"), url)
    assert "permitted" in error.message
    assert "secret" not in error.message
    assert network.requests == []


@pytest.mark.parametrize("url", ["http://x:y/", "http://a\x00b/", "http://[::1/"])
async def test_what_is_no_url_is_refused(url: str) -> None:
    assert "cannot be fetched" in (await refused(Network(picture).fetcher("*"), url)).message


PRIVATE = [
    "127.0.0.1",
    "127.1.2.3",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.5.5",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "192.0.2.1",
    "::1",
    "::",
    "fe80::1%eth0",
    "fc00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "2002:c0a8:101::1",
    "not an address",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_for_everybody(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", [PUBLIC, "2606:4700::1111", "8.8.8.8"])
def test_addresses_that_are(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], [PUBLIC, "10.0.0.1"], ["169.254.169.254"]])
async def test_a_host_with_a_private_address_is_not_asked(addresses: list[str]) -> None:
    network = Network(picture, inner_example=addresses)
    error = await refused(network.fetcher("*"), "http://inner.example/")
    assert "not public" in error.message
    assert network.requests == []
    allowed = network.fetcher("*", allow_private_addresses=True)
    assert (await allowed.fetch("http://inner.example/")).data == b"picture"
    assert network.requests[0].url.host == addresses[0]


async def test_an_address_in_the_url_is_looked_at_like_any_other() -> None:
    async def as_it_stands(host: str, port: int) -> list[str]:
        return [host]

    network = Network(picture)
    network.resolve = as_it_stands  # type: ignore[method-assign]  # the test's own resolver
    for url in ("http://127.0.0.1/", "http://[::1]:80/", "http://169.254.169.254/latest"):
        assert "not public" in (await refused(network.fetcher("*"), url)).message
    assert network.requests == []


def redirect(*targets: str) -> Answer:
    left = list(targets)

    def answer(request: httpx.Request) -> httpx.Response:
        if left:
            headers = {"location": left.pop(0), "set-cookie": "a=b"}
            return httpx.Response(302, headers=headers)
        return picture(request)

    return answer


async def test_redirects_are_followed_a_few_times_and_each_is_checked() -> None:
    network = Network(redirect("/b", "https://other.example/c", "http://other.example/d"))
    found = await network.fetcher("images.example", "other.example").fetch("https://images.example")
    assert found.data == b"picture"
    paths = [request.url.path for request in network.requests]
    assert paths == ["/", "/b", "/c", "/d"]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("https://evil.example/", "not fetched by this server"),
        ("http://inner.example/", "not public"),
        ("file:///etc/passwd", "permitted: http"),
        ("data:image/png;base64,AA==", "cannot be fetched"),
        ("//user@images.example/", "permitted: http"),
    ],
)
async def test_a_redirect_to_elsewhere_is_refused(target: str, said: str) -> None:
    network = Network(redirect(target), inner_example=["10.0.0.1"])
    fetcher = network.fetcher("images.example", "inner.example")
    assert said in (await refused(fetcher, "https://images.example/")).message
    assert len(network.requests) == 1


async def test_a_circle_of_redirects_ends() -> None:
    network = Network(redirect(*["/again"] * 100))
    error = await refused(network.fetcher("*"), "https://images.example/")
    assert "more than 3 redirects" in error.message
    assert len(network.requests) == 4


class _Pieces(httpx.AsyncByteStream):
    def __init__(self, piece: bytes, gap: float = 0.0) -> None:
        self._piece = piece
        self._gap = gap
        self.num_sent = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(self._gap)
            self.num_sent += 1
            yield self._piece


async def test_too_much_is_refused_before_it_has_come() -> None:
    announced = Network(lambda _: httpx.Response(200, headers={"content-length": "1001"}))
    error = await refused(announced.fetcher("*"), "http://images.example/")
    assert "1001 B or more, permitted are 1000 B" in error.message
    endless = _Pieces(b"x" * 100)
    unannounced = Network(lambda _: httpx.Response(200, stream=endless))
    error = await refused(unannounced.fetcher("*"), "http://images.example/")
    assert "permitted are 1000 B" in error.message
    assert endless.num_sent == 11


async def test_an_answer_that_takes_too_long_is_given_up() -> None:
    slow = Network(lambda _: httpx.Response(200, stream=_Pieces(b"x", gap=0.02)))
    error = await refused(slow.fetcher("*", total_s=0.05), "http://images.example/")
    assert "did not come within 0.05 s" in error.message


def _unreachable(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("connection refused", request=request)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda _: httpx.Response(404), "answers with status 404"),
        (lambda _: httpx.Response(302), "answers with status 302"),
        (lambda _: httpx.Response(204), "answers with status 204"),
        (_unreachable, "cannot be fetched: connection refused"),
    ],
)
async def test_what_does_not_come_is_told(answer: Answer, said: str) -> None:
    error = await refused(Network(answer).fetcher("*"), "http://images.example/")
    assert said in error.message


async def test_a_compressed_answer_is_not_unpacked() -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        headers = {"content-encoding": "gzip"}
        return httpx.Response(200, headers=headers, stream=_Pieces(b"x"))

    error = await refused(Network(answer).fetcher("*"), "http://images.example/")
    assert "Content-Encoding 'gzip'" in error.message


async def test_a_name_that_does_not_exist_is_told() -> None:
    async def nowhere(host: str, port: int) -> list[str]:
        raise OSError(-2, "Name or service not known")

    network = Network(picture)
    network.resolve = nowhere  # type: ignore[method-assign]  # the test's own resolver
    error = await refused(network.fetcher("*"), "http://images.example/")
    assert "Name or service not known" in error.message


async def test_a_real_connection_goes_where_it_should() -> None:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\npicture")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        media = MediaConfig(allowed_media_domains=("localhost",), allow_private_addresses=True)

        async def here(host: str, _: int) -> list[str]:
            assert host == "localhost"
            return ["127.0.0.1"]

        found = await MediaFetcher(media, 100, resolve=here).fetch(f"http://localhost:{port}/x")
    assert found.data == b"picture"
    assert f"host: localhost:{port}".encode() in asked[0].lower()
