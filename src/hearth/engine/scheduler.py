"""Scheduler: which tokens of which sequences the next step computes. Integers only, no arrays.

One rule, no phases: a step hands out a budget of tokens so that computed catches up with known.
Running sequences come first, those that lack a single token (decoding) before longer chunks; what
is left of the budget admits waiting ones by (priority, arrival). When blocks run out, the running
sequence that ranks last gives its blocks up and is computed anew later; a sequence only ever takes
blocks from one that ranks behind it, so the first of all always proceeds, and everybody in turn
(that a single sequence of full length fits is checked at the start). One is admitted only when all
running ones had their share of the budget: so they never outnumber it, and none of them starves.

`plan` and `commit` come in pairs, tied by the `StepDecision`. A sequence of an uncommitted decision
is not planned again, and keeps its blocks even when it is cancelled: the step still writes to them.
The seams for later: `commit` takes any number of tokens a sequence (speculation), a decision names
the number of logits rows a sequence, several decisions may be in flight (overlap).
"""

from __future__ import annotations

import sys
from bisect import insort
from collections.abc import Iterable
from collections.abc import Sequence as Rows
from operator import attrgetter

from hearth.core.config import SchedulerConfig
from hearth.core.errors import CapacityError, HearthError, OverloadedError, RequestError
from hearth.core.events import EngineObserver
from hearth.core.request import FinishReason, PromptLogprobs, Request, TokenLogprobs
from hearth.engine.admission import validate_request
from hearth.engine.decision import StepDecision
from hearth.engine.integrity import check_sequences
from hearth.engine.kv.blocks import BlockManager
from hearth.engine.messages import WireEvent
from hearth.engine.sequence import Sequence, SequenceState

_rank = attrgetter("rank")


class Scheduler:
    """Owns all sequences from submit to their one terminal event."""

    def __init__(
        self,
        config: SchedulerConfig,
        blocks: BlockManager,
        *,
        max_model_len: int,
        vocab_size: int,
        max_logit_rows: int = sys.maxsize,
        observers: Iterable[EngineObserver] = (),
    ) -> None:
        self.config = config
        self.max_logit_rows = max_logit_rows
        self.blocks = blocks
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self._observers = tuple(observers)
        self._sequences: dict[str, Sequence] = {}  # all that are not finished
        self._running: list[Sequence] = []  # by rank
        self._waiting: list[Sequence] = []  # by rank
        self._leaving: list[Sequence] = []  # finished, but a step in flight uses their blocks
        self._events: list[WireEvent] = []
        self._num_arrivals = 0

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks and take part in steps."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue, preempted ones included."""
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether a plan would contain something, or events wait to be taken."""
        return bool(self._running or self._waiting or self._events)

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises RequestError (empty prompt, token ids outside the vocabulary, an id in use),
        ContextOverflowError, OverloadedError (`max_num_seqs` + `max_queued_requests` are there).
        """
        if request.request_id in self._sequences:
            raise RequestError(f"request_id {request.request_id!r} is in use", param="request_id")
        validate_request(request, max_model_len=self.max_model_len, vocab_size=self.vocab_size)
        bound = self.config.max_num_seqs + self.config.max_queued_requests
        if len(self._sequences) >= bound:
            raise OverloadedError(
                f"{bound} requests are running or queued, the limit", hint="retry later"
            )
        self._num_arrivals += 1
        table = self.blocks.new_table()
        sequence = Sequence(request, self._num_arrivals, table, self.max_model_len)
        self._sequences[request.request_id] = sequence
        insort(self._waiting, sequence, key=_rank)
        for observer in self._observers:
            observer.on_submit(request.request_id, len(request.prompt))
        self._finish_resumed(sequence)

    def cancel(self, request_id: str) -> None:
        """Ends a request with a CANCELLED event; unknown or ended ids are ignored."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._finish(sequence, FinishReason.CANCELLED)

    def plan(self) -> StepDecision | None:
        """Decides the next step; None when there is nothing to compute."""
        decision = StepDecision(self.max_logit_rows)
        budget, is_short = self._plan_running(decision)
        if self._waiting and not is_short:
            self._plan_waiting(decision, budget)
        for sequence, num_tokens in zip(decision.sequences, decision.num_tokens, strict=True):
            sequence.num_in_flight += num_tokens
        if decision.sequences:
            return decision
        self._break_stall()
        return None

    def commit(
        self,
        decision: StepDecision,
        sampled: Rows[Rows[int]],
        hashes: Rows[Rows[int]] | None = None,
        logprobs: Rows[Rows[TokenLogprobs | None]] | None = None,
        scores: Rows[PromptLogprobs | None] | None = None,
    ) -> None:
        """Takes a step's results in: `sampled[i]` are the new tokens of `decision.sequences[i]`.

        Empty for a chunk that does not reach the last known token; more than one when drafted
        tokens were accepted. `hashes[i]`: the hashes of their logits, for debugging; `logprobs[i]`:
        their log-probabilities, None where the request does not ask; `scores[i]`: those of the
        prompt's tokens that `num_given[i]` of its rows stood for.
        """
        for index, sequence in enumerate(decision.sequences):
            num_tokens = decision.num_tokens[index]
            sequence.num_in_flight -= num_tokens
            if sequence.state is SequenceState.FINISHED:
                self._let_go(sequence)
                continue
            sequence.num_computed += num_tokens
            if scores and decision.num_given[index]:
                self._tell_scores(sequence, decision.num_given[index], scores[index])
            tokens = sampled[index]
            if tokens:
                digests = tuple(hashes[index]) if hashes else ()
                known = [p for p in logprobs[index] if p is not None] if logprobs else ()
                self._accept(sequence, tokens, digests, known)
                continue
            if sequence.num_computed >= sequence.settle_at:
                self._settle_blocks(sequence)
            if sequence.is_scored and sequence.num_known >= sequence.max_known:
                self._finish(sequence, FinishReason.LENGTH)  # nothing is to be generated

    def fail(self, decision: StepDecision, error: HearthError) -> None:
        """The step of `decision` failed: its sequences end with an ERROR event."""
        for sequence, num_tokens in zip(decision.sequences, decision.num_tokens, strict=True):
            sequence.num_in_flight -= num_tokens
            if sequence.state is SequenceState.FINISHED:
                self._let_go(sequence)
            else:
                self._finish(sequence, FinishReason.ERROR, str(error), error.code)

    def fail_all(self, error: HearthError) -> None:
        """Ends every request with an ERROR event; for an engine that cannot go on."""
        for sequence in list(self._sequences.values()):
            self._finish(sequence, FinishReason.ERROR, str(error), error.code)

    def reject(self, request: Request, error: HearthError) -> None:
        """The terminal event of a request that `submit` refused."""
        self._events.append(
            WireEvent(
                request.request_id, (), FinishReason.ERROR, None, 0, error.message, error.code
            )
        )

    def take_events(self) -> list[WireEvent]:
        """Events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def check(self) -> None:
        """Asserts the invariants of the scheduler and of its block manager."""
        check_sequences(self._running, self._waiting, self._leaving, self.blocks)
        assert len(self._sequences) == len(self._running) + len(self._waiting), "one in no queue"

    def _finish_resumed(self, sequence: Sequence) -> None:
        """A resumed request may have been complete already; one without an answer too."""
        generated = sequence.request.generated
        if generated and generated[-1] in sequence.stop_token_ids:
            self._finish(sequence, FinishReason.STOP, stop_token=generated[-1])
        elif sequence.is_scored and sequence.num_known >= sequence.max_known:
            self._finish(sequence, FinishReason.LENGTH)

    def _plan_running(self, decision: StepDecision) -> tuple[int, bool]:
        """Plans running sequences; returns the budget left and whether blocks ran short."""
        budget = self.config.max_num_batched_tokens
        block_size = self.blocks.block_size
        is_short = False
        for sequence in self._running_in_order():
            if budget == 0:
                break
            if sequence.state is not SequenceState.RUNNING or sequence.num_in_flight:
                continue  # preempted a moment ago, or its step is not committed yet
            num_tokens = decision.fitting(sequence, sequence.num_computed, budget)
            if num_tokens == 0:
                continue  # the step has no logits row left for it
            end = sequence.num_computed + num_tokens
            if end > sequence.table.end_block * block_size and not self.blocks.allocate(
                sequence.table, end
            ):
                is_short = True
                has_grown = self._preempt_for(sequence, end, decision)
                budget = self.config.max_num_batched_tokens - sum(decision.num_tokens)
                if not has_grown:
                    continue
            decision.add(sequence, num_tokens)
            budget -= num_tokens
        return budget, is_short

    def _break_stall(self) -> None:
        """Nothing could be planned: the cache is too small for the first one, which ends so.

        The sizes are checked at the start; a mistake in them must not become an endless loop.
        """
        if self._running and not any(sequence.num_in_flight for sequence in self._running):
            message = "the KV cache has too few blocks for this request alone"
            self._finish(self._running[0], FinishReason.ERROR, message, CapacityError.code)

    def _running_in_order(self) -> list[Sequence]:
        """Decoding sequences, then chunks."""
        decoding: list[Sequence] = []
        chunks: list[Sequence] = []
        for sequence in self._running:
            missing = sequence.num_known - sequence.num_computed
            (decoding if missing == 1 else chunks).append(sequence)
        return decoding + chunks if chunks else decoding

    def _preempt_for(self, sequence: Sequence, end: int, decision: StepDecision) -> bool:
        """Preempts from the last rank up until `sequence` has grown to `end` tokens.

        False when all that rank behind it are gone and it must wait for those before it.
        """
        for victim in reversed(self._running[:]):
            if victim is sequence:
                return False
            if victim.num_in_flight == 0:
                decision.remove(victim)
                self._preempt(victim)
                if self.blocks.allocate(sequence.table, end):
                    return True
        return False

    def _preempt(self, victim: Sequence) -> None:
        """Back to the queue: blocks freed (published ones stay cached), computed anew later."""
        self._running.remove(victim)
        self.blocks.free(victim.table)
        for observer in self._observers:
            observer.on_preempt(victim.request_id, victim.num_computed)
        victim.num_computed = 0
        victim.num_preemptions += 1
        victim.state = SequenceState.WAITING
        insort(self._waiting, victim, key=_rank)

    def _plan_waiting(self, decision: StepDecision, budget: int) -> None:
        """Admits waiting sequences in order, until one does not fit."""
        if budget == 0 or len(self._running) >= self.config.max_num_seqs:
            return
        step_tokens = self.config.max_num_batched_tokens
        promised = self._promised_blocks()
        place = 0
        while place < len(self._waiting) and budget > 0:
            if len(self._running) >= self.config.max_num_seqs:
                break
            sequence = self._waiting[place]
            if self._awaits_leader(sequence):
                place += 1
                continue
            matched = self._matched_hashes(sequence)
            start = len(matched) * self.blocks.block_size
            # Among others it must fit whole: it would only be preempted half-way.
            whole = min(sequence.num_known + 1, sequence.max_known)
            if self._running and not self.blocks.can_hold(matched, whole, step_tokens, promised):
                break
            num_tokens = decision.fitting(sequence, start, budget)
            if num_tokens == 0:
                break
            if not self.blocks.admit(sequence.table, matched, start + num_tokens):
                break
            self.blocks.add_outstanding(promised, sequence.table, sequence.num_known, step_tokens)
            del self._waiting[place]
            insort(self._running, sequence, key=_rank)
            self._note_admission(sequence, start)
            decision.add(sequence, num_tokens)
            budget -= num_tokens

    def _awaits_leader(self, sequence: Sequence) -> bool:
        """Whether the one it follows, which ranks before it, still computes their prompt."""
        leader = self._sequences.get(sequence.request.follows)
        return (
            leader is not None
            and leader.rank < sequence.rank
            and self.blocks.enable_prefix_caching
            and leader.num_computed < len(sequence.request.prompt)
        )

    def _promised_blocks(self) -> list[int]:
        """Blocks that running sequences still need for their known tokens, per group."""
        promised = [0] * self.blocks.num_groups
        step_tokens = self.config.max_num_batched_tokens
        for sequence in self._running:
            self.blocks.add_outstanding(promised, sequence.table, sequence.num_known, step_tokens)
        return promised

    def _matched_hashes(self, sequence: Sequence) -> list[bytes]:
        """Hashes of the leading blocks that the cache holds.

        Never all known tokens: the last one must be computed to have logits to sample from, and
        a token of the prompt whose log-probability is wanted, the one before it.
        """
        if not self.blocks.enable_prefix_caching:
            return []
        block_size = self.blocks.block_size
        digests = sequence.block_hashes(sequence.first_wanted_row // block_size, block_size)
        return digests[: self.blocks.match(digests)]

    def _note_admission(self, sequence: Sequence, num_hit: int) -> None:
        """The sequence runs from now on, `num_hit` of its tokens being computed already."""
        sequence.state = SequenceState.RUNNING
        sequence.num_computed = num_hit
        sequence.settle_at = num_hit + self.blocks.block_size
        if sequence.num_cached < 0:
            sequence.num_cached = min(num_hit, len(sequence.request.prompt))
        for observer in self._observers:
            observer.on_prefix(sequence.num_known, num_hit)

    def _tell_scores(
        self, sequence: Sequence, num_given: int, scores: PromptLogprobs | None
    ) -> None:
        """Tells of the prompt's log-probabilities; a preemption does not ask for them again."""
        assert scores is not None
        assert scores.start == sequence.num_scored, "a log-probability lost or doubled"
        sequence.note_scores(num_given)
        event = WireEvent(sequence.request_id, prompt_logprobs=scores)
        self._events.append(event)

    def _accept(
        self,
        sequence: Sequence,
        sampled: Rows[int],
        hashes: tuple[int, ...],
        logprobs: Rows[TokenLogprobs],
    ) -> None:
        """Appends sampled tokens, up to the one that ends the request, and tells of them."""
        reason: FinishReason | None = None
        stop_token: int | None = None
        num_before = sequence.num_known
        for token in sampled:
            if token in sequence.stop_token_ids:
                reason, stop_token = FinishReason.STOP, token
                break
            sequence.tokens.append(token)
            sequence.num_known += 1
            if sequence.num_known >= sequence.max_known:
                reason = FinishReason.LENGTH
                break
        tokens = tuple(sampled[: sequence.num_known - num_before])
        # The last one was sampled, not computed; nor do rejected drafts count as computed.
        num_uncomputed = 1 if stop_token is None else 0
        sequence.num_computed = min(sequence.num_computed, sequence.num_known - num_uncomputed)
        if sequence.num_computed >= sequence.settle_at:
            self._settle_blocks(sequence)
        event = WireEvent(
            sequence.request_id,
            tokens,
            reason,
            stop_token,
            sequence.num_cached,
            "",
            "",
            hashes,
            tuple(logprobs[: len(tokens)]),
        )
        if reason is not None:
            self._end(sequence, event)
        else:
            self._events.append(event)

    def _settle_blocks(self, sequence: Sequence) -> None:
        """Publishes blocks that have become full; frees those behind windows."""
        block_size = self.blocks.block_size
        num_full = sequence.num_computed // block_size
        if self.blocks.enable_prefix_caching:
            self.blocks.publish(sequence.table, sequence.block_hashes(num_full, block_size))
        self.blocks.free_behind_windows(sequence.table, sequence.num_computed)
        sequence.settle_at = (num_full + 1) * block_size

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        message: str = "",
        error_code: str = "",
        *,
        stop_token: int | None = None,
    ) -> None:
        """Ends a sequence between two steps, without new tokens."""
        num_cached, request_id = max(0, sequence.num_cached), sequence.request_id
        self._end(
            sequence,
            WireEvent(request_id, (), reason, stop_token, num_cached, message, error_code),
        )

    def _end(self, sequence: Sequence, event: WireEvent) -> None:
        """The one terminal event; blocks are freed as soon as no step uses them."""
        queue = self._running if sequence.state is SequenceState.RUNNING else self._waiting
        queue.remove(sequence)
        sequence.state = SequenceState.FINISHED
        del self._sequences[sequence.request_id]
        if sequence.num_in_flight:
            self._leaving.append(sequence)
        else:
            self.blocks.free(sequence.table)
        self._events.append(event)
        assert event.finish_reason is not None, "an end without a reason"
        for observer in self._observers:
            observer.on_finish(event.request_id, event.finish_reason, sequence.num_generated)

    def _let_go(self, sequence: Sequence) -> None:
        """Frees the blocks of a finished sequence after its last step in flight."""
        if sequence.num_in_flight == 0:
            self._leaving.remove(sequence)
            self.blocks.free(sequence.table)
