"""MemoryPlan: bytes per consumer with reasons; the arithmetic is in `host/fit`."""

from __future__ import annotations

from dataclasses import dataclass

from hearth.core.units import format_bytes


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """One consumer of memory: its bytes and how they come about."""

    name: str
    num_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What an engine will occupy on one device, against what is there."""

    items: tuple[MemoryItem, ...]
    available_bytes: int
    num_blocks: tuple[int, ...]
    warnings: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Sum over the consumers."""
        return sum(item.num_bytes for item in self.items)

    def lines(self) -> list[str]:
        """One line a consumer for banner and log."""
        return [f"{i.name}: {format_bytes(i.num_bytes)} = {i.reason}" for i in self.items]
