"""What an engine reports while it works. The engine emits, it never counts: observers do.

An observer is called in the engine's thread and must return quickly; what it raises ends the step,
so it raises nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hearth.core.request import FinishReason


class EngineObserver(Protocol):
    """Told of every step and of every turn in the life of a request."""

    def on_submit(self, request_id: str, num_prompt_tokens: int) -> None:
        """A request was accepted into the queue."""
        ...

    def on_prefix(self, num_query_tokens: int, num_hit_tokens: int) -> None:
        """A sequence was admitted; so many of its known tokens were found in the prefix cache."""
        ...

    def on_preempt(self, request_id: str, num_lost_tokens: int) -> None:
        """A running sequence lost its blocks and waits again; so many tokens are computed anew."""
        ...

    def on_draft(self, request_id: str, num_drafted: int, num_accepted: int) -> None:
        """So many drafted tokens of a sequence were verified in a step, and so many accepted."""
        ...

    def on_step(
        self, num_sequences: int, num_tokens: int, num_generated: int, execute_s: float
    ) -> None:
        """A step was committed; `execute_s` is the time spent in the executor.

        It computed `num_tokens` tokens; answers became longer by `num_generated`.
        """
        ...

    def on_finish(self, request_id: str, reason: FinishReason, num_generated: int) -> None:
        """A request reached its one terminal event."""
        ...


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of an engine. Blocks are summed over the KV groups; counters start at 0."""

    num_running: int
    num_waiting: int
    num_blocks_total: int
    num_blocks_free: int
    num_blocks_cached: int  # free for use, but still holding a reusable prefix
    num_blocks_used: int
    num_steps: int = 0
    num_computed_tokens: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    num_prefix_query_tokens: int = 0
    num_prefix_hit_tokens: int = 0
    num_submitted: int = 0
    num_finished: int = 0
    num_drafts: int = 0  # speculation: of a sequence in a step
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0  # of the drafted ones
    num_stalls: int = 0  # pauses because the front end did not take its events
    execute_s: float = 0.0
    peak_bytes: int = 0  # memory of the engine's process at its most
    num_images: int = 0  # that were encoded
    encode_s: float = 0.0
