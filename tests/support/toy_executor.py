"""An executor without a model: its next token is a hash of the context, read back as paged.

It stores the token ids of each step at their slots in memory of its own, block by block, and
computes a logits row's token from the whole visible context as the plan's block tables show it. So
whatever goes wrong with blocks, slots, positions, windows, rows or seeds changes tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from hearth.core.errors import KernelError
from hearth.core.program import KvGroupSpec, StepProgram
from hearth.core.step import (
    ExecutorInfo,
    KvConfig,
    LogitEdits,
    StepLimits,
    StepPlan,
    StepResult,
)

POISON = -7


def toy_program(vocab_size: int = 97, windows: tuple[int, ...] = (0,)) -> StepProgram:
    """A program of no operations whose KV groups have these windows."""
    groups = tuple(KvGroupSpec(1, 1, 1, window) for window in windows)
    return StepProgram((), (), (), groups, vocab_size)


class ToyExecutor:
    """Implements core.step.Executor; `fail_next` makes the next step raise it."""

    def __init__(
        self, program: StepProgram, limits: StepLimits, kv: KvConfig, window_free: bool = False
    ) -> None:
        self._program = program
        self._limits = limits
        self._block_size = kv.block_size
        self.memory = [np.full(n * kv.block_size, POISON, np.int64) for n in kv.num_blocks]
        self.fail_next: Exception | None = None
        self.num_steps = 0
        self.computed: list[int] = []  # tokens of each step

    @property
    def program(self) -> StepProgram:
        return self._program

    @property
    def info(self) -> ExecutorInfo:
        return ExecutorInfo("toy", "numpy", "a test", bit_identical=True)

    def execute(self, plan: StepPlan) -> StepResult:
        self._check_limits(plan)
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        self.num_steps += 1
        self.computed.append(len(plan.tokens))
        for group, memory in enumerate(self.memory):
            assert len(set(plan.slots[group].tolist())) == len(plan.tokens), "a slot twice"
            memory[plan.slots[group]] = plan.tokens
        tokens, hashes, logprobs = [], [], []
        owners = np.searchsorted(plan.row_start, plan.logit_rows, side="right") - 1
        for index, (row, owner) in enumerate(zip(plan.logit_rows, owners)):
            digest = self._digest(plan, int(row), int(owner))
            position = int(plan.sampling.position[index])
            assert position == plan.positions[0, row] + 1
            draw = b""
            if plan.sampling.temperature[index] > 0:
                choice = int(plan.sampling.choice[index])
                draw = repr((int(plan.sampling.seed[index]), position, choice)).encode()
            edits = plan.sampling.edits
            forbidden: set[int] = set()
            given = -1 if plan.sampling.given is None else int(plan.sampling.given[index])
            if given >= 0:
                assert edits is None or not _edits_digest(edits, index), "nothing is sampled here"
                tokens.append(given)
                hashes.append(0)
                logprobs.append(toy_logprob(digest, given))
                continue
            if edits is not None:
                draw += _edits_digest(edits, index)
                changes = slice(*edits.bias_start[index : index + 2].tolist())
                biases = zip(edits.bias_tokens[changes].tolist(), edits.biases[changes].tolist())
                forbidden = {token for token, bias in biases if bias == float("-inf")}
            token = int.from_bytes(hashlib.sha256(digest + draw).digest()[:8], "little")
            token %= self._program.vocab_size
            while token in forbidden:
                token = (token + 1) % self._program.vocab_size
            tokens.append(token)
            hashes.append(int.from_bytes(digest[:8], "little"))
            logprobs.append(0.0)
        return StepResult(
            np.array(tokens, np.int32),
            np.array(logprobs, np.float32),
            np.array(hashes, np.uint64) if plan.want_hashes else None,
            ranks=None if plan.sampling.given is None else np.ones(len(tokens), np.int32),
        )

    def close(self) -> None:
        self.memory = []

    def _digest(self, plan: StepPlan, row: int, owner: int) -> bytes:
        """Hash over what each group shows of the context of a row."""
        digest = hashlib.sha256()
        position = int(plan.context[owner]) + row - int(plan.row_start[owner])
        assert position == plan.positions[0, row] == plan.positions[1, row]
        for group, spec in enumerate(self._program.kv_groups):
            first_visible = max(0, position - spec.window + 1) if spec.window else 0
            indices = np.arange(first_visible, position + 1)
            start, end = plan.block_start[group, owner : owner + 2]
            table = plan.blocks[start:end]
            local = indices // self._block_size - plan.first_block[group, owner]
            assert local.min() >= 0, "a visible block was freed"
            slots = table[local] * self._block_size + indices % self._block_size
            context = self.memory[group][slots]
            assert (context != POISON).all(), "memory read that nobody wrote"
            digest.update(context.tobytes() + indices.tobytes())
        return digest.digest()

    def _check_limits(self, plan: StepPlan) -> None:
        limits = self._limits
        assert 0 < len(plan.tokens) <= limits.max_tokens
        assert 0 < len(plan.context) <= limits.max_sequences
        assert len(plan.logit_rows) <= limits.max_logit_rows
        assert plan.row_start[-1] == len(plan.tokens)
        assert (np.diff(plan.row_start) > 0).all()
        assert (plan.context[:] + np.diff(plan.row_start) < limits.max_model_len + 1).all()
        for array in (plan.tokens, plan.positions, plan.slots, plan.block_start, plan.first_block):
            assert array.flags.c_contiguous
        if plan.tokens.min() < 0 or plan.tokens.max() >= self._program.vocab_size:
            raise KernelError("token outside the vocabulary")


def _edits_digest(edits: LogitEdits, row: int) -> bytes:
    """What a row's answer may depend on; empty where it has no edits."""
    counted = slice(*edits.count_start[row : row + 2].tolist())
    tokens, counts = edits.count_tokens[counted].tolist(), edits.counts[counted].tolist()
    assert len(set(tokens)) == len(tokens), "a token twice"
    values = (edits.repetition[row], edits.frequency[row], edits.presence[row])
    return repr((values, sorted(zip(tokens, counts)))).encode() if tokens else b""


def toy_logprob(digest: bytes, token: int) -> float:
    """What the toy says of a given token after the context of this digest."""
    raw = hashlib.sha256(digest + token.to_bytes(4, "little")).digest()
    return -float(int.from_bytes(raw[:3], "little"))


def solo_scores(program: StepProgram, prompt: tuple[int, ...]) -> list[float]:
    """Log-probabilities of a prompt's tokens after the first, without blocks or plan."""
    return [
        toy_logprob(solo_digest(program, prompt[:end]), prompt[end])
        for end in range(1, len(prompt))
    ]


def solo_digest(program: StepProgram, known: Sequence[int]) -> bytes:
    """The hash of a context, each group seeing its window of it."""
    digest = hashlib.sha256()
    position = len(known) - 1
    for spec in program.kv_groups:
        first = max(0, position - spec.window + 1) if spec.window else 0
        indices = np.arange(first, position + 1)
        digest.update(np.array(known[first:], np.int64).tobytes() + indices.tobytes())
    return digest.digest()


def solo_tokens(
    program: StepProgram, prompt: tuple[int, ...], num_tokens: int, *, seed: int | None = None
) -> list[int]:
    """What a request alone would answer, computed without blocks, scheduler or plan."""
    known = list(prompt)
    for _ in range(num_tokens):
        draw = b"" if seed is None else repr((seed, len(known), 0)).encode()
        digest = solo_digest(program, known)
        token = int.from_bytes(hashlib.sha256(digest + draw).digest()[:8], "little")
        known.append(token % program.vocab_size)
    return known[len(prompt) :]
