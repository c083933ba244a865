"""The address to listen on, bound before the weights are loaded: a port in use fails at once.

Imports the standard library only.

The socket listens from the beginning: a client that comes while the model loads waits for its
answer instead of being refused.
"""

from __future__ import annotations

import errno
import ipaddress
import socket

from hearth.core.errors import ConfigError, PortInUseError

# Connections that may wait to be accepted. The kernel takes the smaller of this and
# net.core.somaxconn (listen(2)), so that setting alone decides; see docs/tuning.md.
BACKLOG = 65535


def bind_socket(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one (see `getsockname`).

    Raises:
        PortInUseError: another process listens there.
        ConfigError: the address is not one of this machine, or may not be bound.
    """
    family, address = _address_of(host, port)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # after a restart: TIME_WAIT
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _translate(error, host, port) from error
    sock.setblocking(False)
    return sock


def url_of(host: str, port: int) -> str:
    """The address as a client on this machine writes it: 0.0.0.0 is reached as 127.0.0.1."""
    if host in ("0.0.0.0", ""):
        host = "127.0.0.1"
    elif host == "::":
        host = "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address; a name counts as its own text."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address_of(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        found = socket.getaddrinfo(
            host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(
            f"--host {host!r} is not an address or name that this machine knows",
            hint="use 127.0.0.1 (this machine only) or 0.0.0.0 (every network)",
        ) from error
    # "localhost" is ::1 first on many machines, while clients and our own URL say 127.0.0.1.
    best = next((item for item in found if item[0] is socket.AF_INET), found[0])
    address = best[4]
    return best[0], (str(address[0]), int(address[1]))


def _translate(error: OSError, host: str, port: int) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return PortInUseError(
            f"--port {port}: another process already listens on {host}:{port}",
            hint=f"choose another port, such as --port {port + 1 if port < 65535 else 8000}, or "
            f"find the process with: ss -ltnp 'sport = :{port}'",
        )
    if error.errno == errno.EACCES:
        return ConfigError(
            f"--port {port} may not be bound by this user", hint="use a port of 1024 or above"
        )
    return ConfigError(
        f"--host {host} --port {port} cannot be bound: {error.strerror}",
        hint="use 127.0.0.1, 0.0.0.0 or an address of this machine",
    )
