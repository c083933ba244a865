"""Who is told how a pull goes on. Calls come from several threads at once."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """What the command line shows, and tests record."""

    def begin(self, title: str, total_bytes: int, done_bytes: int) -> None:
        """A phase with so many bytes in all, of which some are done."""
        ...

    def advance(self, num_bytes: int) -> None:
        """So many bytes more; fewer than none where a file begins anew."""
        ...

    def note(self, text: str) -> None:
        """Something that the user should see: a retry, another source, a wait."""
        ...


class Silent:
    """Tells nobody."""

    def begin(self, title: str, total_bytes: int, done_bytes: int) -> None:
        pass

    def advance(self, num_bytes: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass
