"""Sequence: the mutable life of a Request inside the engine. Integers only.

    num_computed      num_computed + num_in_flight      num_known = len(tokens)
  ───────┴───────────────────┴────────────────────────────────┴────▶ tokens
   in the KV cache   in a planned step, not yet committed   known, to be computed

Known are the prompt, the tokens that a resumed request brought along, and what was generated here.
A sequence whose computed tokens have caught up with the known ones has its next token sampled.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Rows
from enum import IntEnum

from hearth.core.request import FinishReason, Request
from hearth.engine.edits import edits_of
from hearth.engine.kv.blocks import BlockTable
from hearth.engine.kv.prefix import extend_hashes, root_hash
from hearth.engine.sequence_images import SequenceImages


class SequenceState(IntEnum):
    """Waiting has no blocks; running has; finished had its terminal event.

    A finished sequence keeps its blocks until the step that still uses them is committed.
    """

    WAITING = 0
    RUNNING = 1
    FINISHED = 2


class Sequence:
    """Counters, tokens and block table of one request."""

    __slots__ = (
        "edits",
        "hashes",
        "images",
        "is_scored",
        "max_known",
        "num_cached",
        "num_computed",
        "num_in_flight",
        "num_known",
        "num_preemptions",
        "num_scored",
        "rank",
        "request",
        "request_id",
        "root",
        "settle_at",
        "state",
        "stop_token_ids",
        "table",
        "tokens",
    )

    def __init__(
        self, request: Request, arrival: int, table: BlockTable, max_model_len: int
    ) -> None:
        self.request = request
        self.edits = edits_of(request)
        self.request_id = request.request_id
        self.stop_token_ids = request.stop_token_ids
        self.tokens = array("i", request.prompt)
        self.tokens.extend(request.generated)
        self.num_known = len(self.tokens)
        self.max_known = min(len(request.prompt) + request.max_tokens, max_model_len)
        # Prompt tokens whose log-probabilities were told, or are not wanted; the first has none.
        # They stay told through a preemption.
        wants_scores = request.sampling.num_prompt_logprobs >= 0 and not request.generated
        self.num_scored = 1 if wants_scores else len(request.prompt)
        self.is_scored = self.num_scored == len(request.prompt)
        self.num_computed = 0
        self.num_in_flight = 0
        self.num_cached = -1  # prompt tokens found in the prefix cache; −1: never admitted
        self.num_preemptions = 0
        self.rank = (request.priority, arrival)  # smaller goes first; unique
        self.state = SequenceState.WAITING
        self.table = table
        self.images = (
            SequenceImages(request.images, len(request.prompt)) if request.images else None
        )
        self.root = root_hash(request.cache_key)
        self.hashes: list[bytes] = []
        self.settle_at = 0  # once so many tokens are computed, another block is full

    @property
    def num_generated(self) -> int:
        """Tokens after the prompt, those of an earlier life included."""
        return self.num_known - len(self.request.prompt)

    def start(self, num_hit: int, block_size: int) -> None:
        """It runs from now on, `num_hit` of its tokens being computed already."""
        self.state = SequenceState.RUNNING
        self.num_computed = num_hit
        self.settle_at = num_hit + block_size
        if self.num_cached < 0:
            self.num_cached = min(num_hit, len(self.request.prompt))

    def restart(self) -> None:
        """Back to the queue, to be computed anew later."""
        self.state = SequenceState.WAITING
        self.num_computed = 0
        self.num_preemptions += 1

    def note_scores(self, num_tokens: int) -> None:
        """So many more tokens of the prompt had their log-probabilities told."""
        self.num_scored += num_tokens
        self.is_scored = self.num_scored == len(self.request.prompt)

    @property
    def num_wanted(self) -> int:
        """Tokens to compute: the last one only where its logits are sampled from."""
        return self.num_known - (self.request.max_tokens == 0)

    @property
    def first_wanted_row(self) -> int:
        """The first index whose logits are wanted: what the prefix cache holds must end before.

        The logits at index i are those of token i + 1.
        """
        return self.num_known - 1 if self.is_scored else self.num_scored - 1

    def append(self, sampled: Rows[int]) -> tuple[FinishReason | None, int | None]:
        """Takes sampled tokens in, up to the one that ends the request.

        Returns why it ends, if it does, and the stop token that ended it, which is not kept.
        """
        reason: FinishReason | None = None
        stop_token: int | None = None
        for token in sampled:
            if token in self.stop_token_ids:
                reason, stop_token = FinishReason.STOP, token
                break
            self.tokens.append(token)
            self.num_known += 1
            if self.num_known >= self.max_known:
                reason = FinishReason.LENGTH
                break
        # The last one was sampled, not computed; nor do rejected drafts count as computed.
        num_uncomputed = 1 if stop_token is None else 0
        self.num_computed = min(self.num_computed, self.num_known - num_uncomputed)
        return reason, stop_token

    def block_hashes(self, num_blocks: int, block_size: int) -> list[bytes]:
        """Hashes of the first `num_blocks` blocks, which must be full of known tokens."""
        if len(self.hashes) < num_blocks:
            extra = self.images.extra_keys(block_size) if self.images else None
            extend_hashes(self.hashes, self.root, self.tokens, block_size, num_blocks, extra)
        return self.hashes[:num_blocks]
