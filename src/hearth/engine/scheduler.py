"""Scheduler: which tokens of which sequences the next step computes. Integers only, no arrays.

One rule, no phases: a step hands out a budget of tokens so that computed catches up with known. How
it is shared, and what that promises, stands in `budget`; who may be admitted beside those that run,
in `candidates`; where each sequence is, in `queues`. When blocks run out, the running sequence that
ranks last (by priority, then arrival) gives its blocks up and is computed anew later; a sequence
only ever takes blocks from one that ranks behind it, so the first of all always proceeds, and
everybody in turn (that a single sequence of full length fits is checked at the start). Running ones
never outnumber the budget, so that each that decodes gets its token in every step. A request past
its deadline ends before the next step is planned.

`plan` and `commit` come in pairs, tied by the `StepDecision`. A sequence of an uncommitted decision
is not planned again, and keeps its blocks even when it is cancelled: the step still writes to them.
What steps of decoding leave may be used for drafts (`speculation`), which `commit` verifies. The
seam for later: several decisions may be in flight (overlap).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Rows

from hearth.core.config import SchedulerConfig
from hearth.core.errors import CapacityError, DeadlineExceededError, HearthError, RequestError
from hearth.core.events import EngineObserver
from hearth.core.request import FinishReason, PromptLogprobs, Request, TokenLogprobs
from hearth.core.step import StepLimits
from hearth.engine.admission import check_queue, validate_request
from hearth.engine.budget import share_by_priority, split_by_missing
from hearth.engine.candidates import find_candidates
from hearth.engine.deadlines import Deadlines
from hearth.engine.decision import StepDecision
from hearth.engine.kv.blocks import BlockManager
from hearth.engine.messages import WireEvent
from hearth.engine.queues import Queues
from hearth.engine.reuse import matched_hashes, settle_blocks
from hearth.engine.sequence import Sequence, SequenceState
from hearth.engine.speculation.drafter import Drafter
from hearth.engine.speculation.drafts import add_drafts, num_accepted


def _is_busy(sequence: Sequence) -> bool:
    """Whether a running sequence has a reason to be in no plan: a step in flight, an image."""
    images = sequence.images
    awaits_image = images is not None and images.num_ready <= sequence.num_computed
    return sequence.num_in_flight > 0 or awaits_image


class Scheduler:
    """Owns all sequences from submit to their one terminal event."""

    def __init__(
        self,
        config: SchedulerConfig,
        blocks: BlockManager,
        limits: StepLimits,
        *,
        vocab_size: int,
        drafter: Drafter | None = None,
        observers: Iterable[EngineObserver] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.blocks = blocks
        self._limits = limits
        self._vocab_size = vocab_size
        self.drafter = drafter  # may be exchanged between two steps
        self._observers = tuple(observers)
        self._queues = Queues(blocks)
        self._events: list[WireEvent] = []
        self._num_arrivals = 0
        self._deadlines = Deadlines(clock)

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks and take part in steps."""
        return len(self._queues.running)

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue, preempted ones included."""
        return len(self._queues.waiting)

    @property
    def has_work(self) -> bool:
        """Whether a plan would contain something, or events wait to be taken."""
        return bool(self._queues.running or self._queues.waiting or self._events)

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises RequestError (empty prompt, token ids outside the vocabulary, an id in use),
        ContextOverflowError, OverloadedError (`max_num_seqs` + `max_queued_requests` are there).
        """
        if request.request_id in self._queues.by_id:
            raise RequestError(f"request_id {request.request_id!r} is in use", param="request_id")
        max_model_len = self._limits.max_model_len
        validate_request(request, max_model_len=max_model_len, vocab_size=self._vocab_size)
        check_queue(len(self._queues.by_id), self.config)
        self._num_arrivals += 1
        table = self.blocks.new_table()
        sequence = Sequence(request, self._num_arrivals, table, max_model_len)
        self._queues.enter(sequence)
        for observer in self._observers:
            observer.on_submit(request.request_id, len(request.prompt))
        self._deadlines.watch(sequence)
        self._finish_resumed(sequence)

    @property
    def sequences(self) -> tuple[list[Sequence], list[Sequence]]:
        """Those that run and those that wait, each by rank; not to be changed."""
        return self._queues.running, self._queues.waiting

    def abort(self, sequence: Sequence, error: HearthError) -> None:
        """Ends a sequence with an ERROR event, between two steps."""
        self._finish(sequence, FinishReason.ERROR, error.message, error.code)

    def cancel(self, request_id: str) -> None:
        """Ends a request with a CANCELLED event; unknown or ended ids are ignored."""
        sequence = self._queues.by_id.get(request_id)
        if sequence is not None:
            self._finish(sequence, FinishReason.CANCELLED)

    def plan(self, most_priority: int | None = None) -> StepDecision | None:
        """Decides the next step; None when there is nothing to compute.

        Prompts of a priority behind `most_priority` wait, for an image that is being encoded.
        """
        for sequence in self._deadlines.expired():
            message = "the request's time was over before it was complete"
            self._finish(sequence, FinishReason.ERROR, message, DeadlineExceededError.code)
        decision = StepDecision(self._limits.max_logit_rows)
        decoding, prefills = split_by_missing(self._queues.running)
        has_room = True
        for sequence in decoding:
            has_room &= self._plan_running(decision, sequence, 1)
        if prefills or self._queues.waiting:
            self._plan_prefills(decision, prefills, most_priority, has_room=has_room)
        for sequence, num_tokens in zip(decision.sequences, decision.num_tokens, strict=True):
            sequence.num_in_flight += num_tokens
        if self.drafter is not None:
            budget = self.config.max_num_batched_tokens
            may_grow = has_room and not self._queues.waiting
            add_drafts(decision, self.drafter, self.blocks, budget, may_grow=may_grow)
        if decision.sequences:
            return decision
        if most_priority is None:
            self._break_stall()
        return None

    def commit(
        self,
        decision: StepDecision,
        sampled: Rows[Rows[int]],
        hashes: Rows[Rows[int]] | None = None,
        logprobs: Rows[Rows[TokenLogprobs | None]] | None = None,
        scores: Rows[PromptLogprobs | None] | None = None,
    ) -> int:
        """Takes a step's results in: `sampled[i]` are the tokens of the rows of `sequences[i]`.

        None for a chunk that does not reach the last known token; one more than were drafted.
        `hashes[i]`: the hashes of their logits, for debugging; `logprobs[i]`: log-probabilities,
        None where the request does not ask; `scores[i]`: those of the prompt's tokens that
        `num_given[i]` of its rows stood for. Returns by how many tokens answers became longer.
        """
        num_generated = 0
        for index, sequence in enumerate(decision.sequences):
            num_tokens, draft = decision.num_tokens[index], decision.drafts[index]
            sequence.num_in_flight -= num_tokens - len(draft)
            if sequence.state is SequenceState.FINISHED:
                self._queues.let_go(sequence)
                continue
            sequence.num_computed += num_tokens
            if scores and decision.num_given[index]:
                self._tell_scores(sequence, decision.num_given[index], scores[index])
            tokens = sampled[index]
            if draft:
                tokens = self._verified(sequence, draft, tokens)
            if tokens:
                digests = tuple(hashes[index][: len(tokens)]) if hashes else ()
                known = [p for p in logprobs[index] if p is not None] if logprobs else ()
                num_generated += self._accept(sequence, tokens, digests, known)
                continue
            if sequence.num_computed >= sequence.settle_at:
                settle_blocks(sequence, self.blocks)
            if sequence.is_scored and sequence.num_known >= sequence.max_known:
                self._finish(sequence, FinishReason.LENGTH)  # nothing is to be generated
        return num_generated

    def fail(self, decision: StepDecision, error: HearthError) -> None:
        """The step of `decision` failed: its sequences end with an ERROR event."""
        for index, sequence in enumerate(decision.sequences):
            sequence.num_in_flight -= decision.num_tokens[index] - len(decision.drafts[index])
            if sequence.state is SequenceState.FINISHED:
                self._queues.let_go(sequence)
            else:
                self._finish(sequence, FinishReason.ERROR, str(error), error.code)

    def fail_all(self, error: HearthError) -> None:
        """Ends every request with an ERROR event; for an engine that cannot go on."""
        for sequence in list(self._queues.by_id.values()):
            self._finish(sequence, FinishReason.ERROR, str(error), error.code)

    def reject(self, request: Request, error: HearthError) -> None:
        """The terminal event of a request that `submit` refused."""
        name, ended = request.request_id, FinishReason.ERROR
        self._events.append(WireEvent(name, (), ended, None, 0, error.message, error.code))

    def take_events(self) -> list[WireEvent]:
        """Events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def check(self) -> None:
        """Asserts the invariants of the scheduler and of its block manager."""
        self._queues.check()

    def _finish_resumed(self, sequence: Sequence) -> None:
        """A resumed request may have been complete already; one without an answer too."""
        generated = sequence.request.generated
        if generated and generated[-1] in sequence.stop_token_ids:
            self._finish(sequence, FinishReason.STOP, stop_token=generated[-1])
        elif sequence.is_scored and sequence.num_known >= sequence.max_known:
            self._finish(sequence, FinishReason.LENGTH)

    def _plan_running(self, decision: StepDecision, sequence: Sequence, num_tokens: int) -> bool:
        """Plans tokens of a running sequence; False when blocks ran short."""
        if sequence.state is not SequenceState.RUNNING or sequence.num_in_flight:
            return True  # preempted a moment ago, or its step is not committed yet
        num_tokens = decision.fitting(sequence, sequence.num_computed, num_tokens)
        if num_tokens == 0:
            return True  # the step has no logits row left for it
        end = sequence.num_computed + num_tokens
        table = sequence.table
        has_room = end <= table.end_block * self.blocks.block_size or self.blocks.allocate(
            table, end
        )
        if has_room or self._preempt_for(sequence, end, decision):
            decision.add(sequence, num_tokens)
        return has_room

    def _plan_prefills(
        self,
        decision: StepDecision,
        prefills: list[Sequence],
        most_priority: int | None,
        *,
        has_room: bool,
    ) -> None:
        """Shares what decoding left among running prefills and those that can be admitted."""
        step_tokens = self.config.max_num_batched_tokens
        budget = step_tokens - sum(decision.num_tokens)
        arriving: dict[Sequence, int] = {}
        if self._queues.waiting and has_room and budget:
            # Not more than the budget: then decoding sequences never outnumber it.
            num_places = min(self.config.max_num_seqs, step_tokens) - len(self._queues.running)
            arriving = find_candidates(
                self._queues.waiting,
                self._queues.by_id,
                self._queues.running,
                self.blocks,
                num_places=num_places,
                step_tokens=step_tokens,
            )
        prefills = [s for s in prefills if s.state is SequenceState.RUNNING]  # not just preempted
        lacking = {s: s.num_known - s.num_computed for s in prefills} | arriving
        if most_priority is not None:
            lacking = {s: n for s, n in lacking.items() if s.rank[0] <= most_priority}
        # A prompt that is scored cannot use more than the logits rows allow: others get the rest.
        usable = {s: decision.fitting(s, s.num_known - n, n) for s, n in lacking.items()}
        shares = share_by_priority(usable, budget)
        for sequence in prefills:
            if sequence in shares:
                has_room &= self._plan_running(decision, sequence, shares[sequence])
        for sequence in arriving:
            if sequence in shares:
                has_room = has_room and self._admit(decision, sequence, shares[sequence])

    def _admit(self, decision: StepDecision, sequence: Sequence, num_tokens: int) -> bool:
        """From the queue to the running ones, with its first chunk; False when it does not fit."""
        # Matched anew: blocks that were found before may have been evicted for others just now.
        matched = matched_hashes(sequence, self.blocks)
        start = len(matched) * self.blocks.block_size
        num_tokens = decision.fitting(sequence, start, num_tokens)
        if num_tokens == 0:
            return True  # no logits row left for it: no reason for others to wait
        if not self.blocks.admit(sequence.table, matched, start + num_tokens):
            return False
        self._queues.admit(sequence, start)
        for observer in self._observers:
            observer.on_prefix(sequence.num_known, start)
        decision.add(sequence, num_tokens)
        return True

    def _break_stall(self) -> None:
        """Nothing could be planned: the cache is too small for the first one, which ends so.

        The sizes are checked at the start; a mistake in them must not become an endless loop.
        """
        if self._queues.running and not any(map(_is_busy, self._queues.running)):
            message = "the KV cache has too few blocks for this request alone"
            self._finish(self._queues.running[0], FinishReason.ERROR, message, CapacityError.code)

    def _preempt_for(self, sequence: Sequence, end: int, decision: StepDecision) -> bool:
        """Preempts from the last rank up until `sequence` has grown to `end` tokens.

        False when all that rank behind it are gone and it must wait for those before it.
        """
        for victim in reversed(self._queues.running[:]):
            if victim is sequence:
                return False
            if victim.num_in_flight == 0:
                decision.remove(victim)
                for observer in self._observers:
                    observer.on_preempt(victim.request_id, victim.num_computed)
                self._queues.send_back(victim)
                if self.blocks.allocate(sequence.table, end):
                    return True
        return False

    def _tell_scores(
        self, sequence: Sequence, num_given: int, scores: PromptLogprobs | None
    ) -> None:
        """Tells of the prompt's log-probabilities; a preemption does not ask for them again."""
        assert scores is not None
        assert scores.start == sequence.num_scored, "a log-probability lost or doubled"
        sequence.note_scores(num_given)
        self._events.append(WireEvent(sequence.request_id, prompt_logprobs=scores))

    def _verified(self, sequence: Sequence, draft: Rows[int], sampled: Rows[int]) -> Rows[int]:
        """The tokens that count: the accepted ones, and the one sampled after them."""
        assert self.drafter is not None, "a draft from nobody"
        accepted = num_accepted(draft, sampled)
        self.drafter.note_verified(len(draft), accepted)
        for observer in self._observers:
            observer.on_draft(sequence.request_id, len(draft), accepted)
        return sampled[: accepted + 1]

    def _accept(
        self,
        sequence: Sequence,
        sampled: Rows[int],
        hashes: tuple[int, ...],
        logprobs: Rows[TokenLogprobs],
    ) -> int:
        """Appends sampled tokens, up to the one that ends the request, and tells of them.

        Returns how many were kept.
        """
        num_before = sequence.num_known
        reason, stop_token = sequence.append(sampled)
        tokens = tuple(sampled[: sequence.num_known - num_before])
        if sequence.num_computed >= sequence.settle_at:
            settle_blocks(sequence, self.blocks)
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
        return len(tokens)

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
        num_cached, name = max(0, sequence.num_cached), sequence.request_id
        event = WireEvent(name, (), reason, stop_token, num_cached, message, error_code)
        self._end(sequence, event)

    def _end(self, sequence: Sequence, event: WireEvent) -> None:
        """The one terminal event."""
        self._queues.end(sequence)
        self._deadlines.forget(sequence)
        self._events.append(event)
        assert event.finish_reason is not None, "an end without a reason"
        for observer in self._observers:
            observer.on_finish(event.request_id, event.finish_reason, sequence.num_generated)
