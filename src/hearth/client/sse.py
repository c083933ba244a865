"""Server-sent events, the receiving side: bytes in any pieces, the payloads of whole events out.

The part of the specification that OpenAI-compatible servers use: `data:` lines; comments and other
fields are skipped. Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

DONE = b"[DONE]"


class EventSplitter:
    """Cuts one response's bytes into event payloads."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """Payloads of the events that `chunk` completes, in order."""
        payloads: list[bytes] = []
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            line = line.removesuffix(b"\r")
            if not line:
                if self._data:
                    payloads.append(b"\n".join(self._data))
                    self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
        return payloads
