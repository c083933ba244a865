"""Images behind http: and https:, fetched for a client without lending it the server's network.

A client that may name URLs could else reach what only the server can: services on its own machine,
the local network, a cloud's metadata. So for each request and each redirect: the host must be one
of `allowed_media_domains`; its name is resolved here, every address must be public, and the
connection goes to the address that was checked (the name stays in the Host header and in the TLS
check), so that a second resolution cannot give another one. Proxies of the environment are not
used, since they would resolve again. Size and total time are bounded.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from hearth.core.config import MediaConfig
from hearth.core.errors import RequestError
from hearth.engine.images.sources import ImageBytes, too_large

if TYPE_CHECKING:
    import ssl

    import httpx

Resolve = Callable[[str, int], Awaitable[list[str]]]

TOTAL_S = 10.0  # for all of it, redirects included
MAX_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
_AGENT = "hearth"


async def resolve_host(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system's resolver tells them. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(address: str) -> bool:
    """Whether everybody could reach this address.

    Not: this machine, private and shared networks, link-local (cloud metadata), multicast and
    reserved ranges, nor IPv6 addresses that stand for such an IPv4 address.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo and found.teredo[1])
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
        if inner is not None and not is_public(str(inner)):
            return False
    return found.is_global and not found.is_multicast


class MediaFetcher:
    """Fetches images; belongs to one event loop."""

    def __init__(
        self,
        media: MediaConfig,
        max_bytes: int,
        *,
        total_s: float = TOTAL_S,
        resolve: Resolve = resolve_host,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`resolve` and `transport` take the network's place in tests."""
        self._media = media
        self._max_bytes = max_bytes
        self.total_s = total_s
        self._resolve = resolve
        self._transport = transport
        self._tls: ssl.SSLContext | None = None

    async def fetch(self, url: str) -> ImageBytes:
        """What an http or https URL gives. Raises RequestError."""
        import httpx

        if not self._media.allowed_media_domains:
            raise RequestError(
                "http: and https: URLs are not fetched by this server (permitted: data: URLs)",
                hint="send the image itself as data:image/png;base64,…, or start the server with "
                "--allowed-media-domains HOST",
            )
        try:
            async with asyncio.timeout(self.total_s):
                return await self._follow(url)
        except TimeoutError as error:
            raise RequestError(
                f"the image did not come within {self.total_s:g} s", hint="send it as a data: URL"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            why = str(error)[:200] or type(error).__name__
            raise RequestError(f"the image cannot be fetched: {why}") from error

    async def _follow(self, text: str) -> ImageBytes:
        """Requests the URL, and what it is redirected to; each one is checked."""
        import httpx

        url = httpx.URL(text)
        async with self._client() as client:
            for _ in range(MAX_REDIRECTS + 1):
                found = await self._request(client, url)
                if isinstance(found, ImageBytes):
                    return found
                url = url.join(found)
        raise RequestError(
            f"the image cannot be fetched: more than {MAX_REDIRECTS} redirects",
            hint="send the last URL, or a data: URL",
        )

    async def _request(self, client: httpx.AsyncClient, url: httpx.URL) -> ImageBytes | str:
        """One answer: an image's bytes, or where else to look."""
        host = self._checked_host(url)
        address = await self._checked_address(host, url)
        request = client.build_request(
            "GET",
            url.copy_with(host=address, fragment=None),
            headers={"Host": url.netloc.decode("ascii")},
            extensions={"sni_hostname": host},
        )
        response = await client.send(request, stream=True)
        try:
            if response.has_redirect_location:
                return str(response.headers["location"])
            if response.status_code != 200:
                raise RequestError(
                    f"the image cannot be fetched: {host} answers with status "
                    f"{response.status_code} (permitted: 200)"
                )
            media_type = response.headers.get("content-type", "").partition(";")[0]
            return ImageBytes(await self._body_of(response), media_type.strip().lower())
        finally:
            await response.aclose()

    def _checked_host(self, url: httpx.URL) -> str:
        """The URL's host as its request names it. Raises RequestError where that is not allowed."""
        host = url.raw_host.decode("ascii").lower().rstrip(".")
        allowed = self._media.allowed_media_domains
        if url.scheme not in _PORTS or not host or url.userinfo:
            raise RequestError(
                f"the image is to be fetched from {str(url.copy_with(password=None))[:80]!r} "
                "(permitted: http://host/… and https://host/…, without a user name)"
            )
        if "*" not in allowed and host not in {domain.lower() for domain in allowed}:
            raise RequestError(
                f"images of the host {host[:80]!r} are not fetched by this server (permitted: "
                f"{', '.join(allowed)})",
                hint="send the image as a data: URL, or add the host to --allowed-media-domains",
            )
        return host

    async def _checked_address(self, host: str, url: httpx.URL) -> str:
        """The address to connect to. Raises RequestError unless all of the host's are public."""
        addresses = await self._resolve(host, url.port or _PORTS[url.scheme])
        if not addresses:
            raise RequestError(f"the host {host[:80]!r} has no address")
        if not self._media.allow_private_addresses and not all(map(is_public, addresses)):
            raise RequestError(
                f"the host {host[:80]!r} is at an address that is not public",
                hint="send the image as a data: URL, or start the server with "
                "--allow-private-media-addresses",
            )
        return addresses[0]

    async def _body_of(self, response: httpx.Response) -> bytes:
        """The body, uncompressed as it was asked for. Raises RequestError."""
        coding = response.headers.get("content-encoding", "identity")
        if coding.lower() != "identity":
            raise RequestError(
                f"the image came with Content-Encoding {coding[:40]!r}, which was not asked for"
            )
        announced = response.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > self._max_bytes:
            raise too_large(int(announced), self._max_bytes)
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > self._max_bytes:
                raise too_large(len(body), self._max_bytes)
        return bytes(body)

    def _client(self) -> httpx.AsyncClient:
        """One for each image: cookies and connections of one host are no other's."""
        import httpx

        if self._tls is None:
            self._tls = httpx.create_ssl_context(trust_env=False)
        return httpx.AsyncClient(
            headers={"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": _AGENT},
            timeout=self.total_s,
            transport=self._transport,
            verify=self._tls,
            trust_env=False,
            follow_redirects=False,
        )
