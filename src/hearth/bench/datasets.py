"""Datasets: conversations of one or more turns, reproducible from a seed.

| name         | what it is                                                                    |
|--------------|-------------------------------------------------------------------------------|
| random       | texts of made-up words, of an exact number of tokens where the tokenizer allows |
| jsonl        | a file, one object a line: `prompt` or `messages`, and `max_tokens` if it wants |
| conversation | an agent's conversation: a system prompt, then turns that carry all before them |
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hearth.bench.lengths import Sizer
from hearth.bench.settings import DatasetChoice
from hearth.core.errors import ConfigError

_ONSETS = (*tuple("bdfgklmnprstvz"), "st", "tr", "pl", "kr")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ou")


@dataclass(frozen=True, slots=True)
class Turn:
    """What a request adds to its conversation; `num_tokens` 0: unknown."""

    messages: tuple[dict[str, Any], ...]
    max_tokens: int
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that are sent one after the other, each with all that was said before."""

    turns: tuple[Turn, ...]


async def load_conversations(
    choice: DatasetChoice, num_requests: int, seed: int, sizer: Sizer | None
) -> list[Conversation]:
    """Conversations with `num_requests` turns in all. Raises ConfigError."""
    rng = random.Random(seed)
    if choice.name == "jsonl":
        return _from_file(choice, num_requests)
    if sizer is None:
        raise ConfigError(f"--dataset-name {choice.name} needs a tokenizer")
    writer = _Writer(rng, sizer, choice)
    if choice.name == "random":
        return [Conversation((await writer.turn(),)) for _ in range(num_requests)]
    found: list[Conversation] = []
    for start in range(0, num_requests, choice.num_turns):
        num_turns = min(choice.num_turns, num_requests - start)
        system = await writer.message("system")
        turns = [await writer.turn() for _ in range(num_turns)]
        first = Turn((system, *turns[0].messages), turns[0].max_tokens, turns[0].num_tokens)
        found.append(Conversation((first, *turns[1:])))
    return found


class _Writer:
    """Writes messages of made-up words; no two begin alike, so that no prefix cache helps."""

    def __init__(self, rng: random.Random, sizer: Sizer, choice: DatasetChoice) -> None:
        self._rng = rng
        self._sizer = sizer
        self._choice = choice

    async def turn(self) -> Turn:
        """One user message and the length of its answer."""
        message = await self.message("user")
        num_output = self._length(self._choice.output_len)
        return Turn((message,), num_output, self._num_tokens)

    async def message(self, role: str) -> dict[str, Any]:
        """A message of about `input_len` tokens; `_num_tokens` has their number."""
        wanted = self._length(self._choice.input_len)
        # Two tokens a word or more, in every vocabulary seen; the sizer cuts what is too long.
        text = " ".join(self._word() for _ in range(wanted))
        sized = await self._sizer.cut(text, wanted)
        self._num_tokens = sized.num_tokens
        return {"role": role, "content": sized.text}

    def _length(self, middle: int) -> int:
        ratio = self._choice.range_ratio
        low, high = int(middle * (1 - ratio)), int(middle * (1 + ratio))
        return max(1, self._rng.randint(low, high))

    def _word(self) -> str:
        rng = self._rng
        return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 3))))


def _from_file(choice: DatasetChoice, num_requests: int) -> list[Conversation]:
    """The file's lines, over again where there are fewer than requests."""
    if choice.path is None:
        raise ConfigError("--dataset-name jsonl needs a file", hint="add --dataset-path FILE")
    try:
        lines = Path(choice.path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--dataset-path {choice.path} cannot be read: {error}") from error
    rows = [
        _row(f"{choice.path}:{number}", line, choice.output_len)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not rows:
        raise ConfigError(f"--dataset-path {choice.path} has no lines")
    return [rows[i % len(rows)] for i in range(num_requests)]


def _row(where: str, line: str, output_len: int) -> Conversation:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from error
    row = row if isinstance(row, dict) else {}
    messages = row.get("messages") or [{"role": "user", "content": row.get("prompt")}]
    if not (isinstance(messages, list) and all(_is_message(message) for message in messages)):
        raise ConfigError(
            f"{where} has no prompt", hint='write {"prompt": "…"} or {"messages": [{"role": …}]}'
        )
    max_tokens = row.get("max_tokens", output_len)
    if not isinstance(max_tokens, int) or max_tokens < 1:
        raise ConfigError(f"{where}: max_tokens {max_tokens!r} is not an integer of 1 or more")
    return Conversation((Turn(tuple(messages), max_tokens),))


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("content"), str | list)
