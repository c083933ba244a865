"""EngineClient on uvloop, whose transports do not derive from asyncio's classes.

EngineClient.connection_made checks with isinstance, which uvloop's UnixTransport does not pass
although it has the same methods. To be dropped when the check there is gone.
"""

from __future__ import annotations

import asyncio
from typing import cast

from hearth.engine.client import EngineClient


class UvloopEngineClient(EngineClient):
    """The same client; takes the transport as it comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Attaches the socket to the loop."""
        self._transport = cast(asyncio.WriteTransport, transport)
