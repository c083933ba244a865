"""Counters: the observer whose totals make up an engine's statistics snapshot."""

from __future__ import annotations

from dataclasses import dataclass

from hearth.core.request import FinishReason


@dataclass(slots=True)
class Counters:
    """Totals since the start of the engine; implements `core.events.EngineObserver`."""

    num_steps: int = 0
    num_computed_tokens: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    num_prefix_query_tokens: int = 0
    num_prefix_hit_tokens: int = 0
    num_submitted: int = 0
    num_finished: int = 0
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    execute_s: float = 0.0

    def on_submit(self, request_id: str, num_prompt_tokens: int) -> None:
        """See EngineObserver."""
        self.num_submitted += 1

    def on_prefix(self, num_query_tokens: int, num_hit_tokens: int) -> None:
        """See EngineObserver."""
        self.num_prefix_query_tokens += num_query_tokens
        self.num_prefix_hit_tokens += num_hit_tokens

    def on_preempt(self, request_id: str, num_lost_tokens: int) -> None:
        """See EngineObserver."""
        self.num_preemptions += 1

    def on_draft(self, request_id: str, num_drafted: int, num_accepted: int) -> None:
        """See EngineObserver."""
        self.num_drafts += 1
        self.num_draft_tokens += num_drafted
        self.num_accepted_tokens += num_accepted

    def on_step(
        self, num_sequences: int, num_tokens: int, num_generated: int, execute_s: float
    ) -> None:
        """See EngineObserver."""
        self.num_steps += 1
        self.num_computed_tokens += num_tokens
        self.num_generated_tokens += num_generated
        self.execute_s += execute_s

    def on_finish(self, request_id: str, reason: FinishReason, num_generated: int) -> None:
        """See EngineObserver."""
        self.num_finished += 1
