"""Prompts are reproducible, of the length that was asked for, and read strictly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.unit.text import builders

from hearth.bench.datasets import load_conversations
from hearth.bench.lengths import TokenSizer
from hearth.bench.settings import (
    DatasetChoice,
    parse_metrics,
    parse_objectives,
    parse_percentiles,
)
from hearth.core.errors import ConfigError
from hearth.engine.text.tokenizer import Tokenizer
from hearth.engine.text.tokenizer_config import TokenizerConfig


class ToyCodec:
    def __init__(self) -> None:
        self.tokenizer = Tokenizer(builders.byte_level(), TokenizerConfig())

    async def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    async def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens)


async def test_random_prompts_have_the_length_and_repeat_with_the_seed() -> None:
    codec = ToyCodec()
    choice = DatasetChoice(input_len=40, output_len=9)
    found = await load_conversations(choice, 5, 1, TokenSizer(codec))
    for conversation in found:
        (turn,) = conversation.turns
        assert len(codec.tokenizer.encode(turn.messages[0]["content"])) == turn.num_tokens == 40
        assert turn.max_tokens == 9
    assert found == await load_conversations(choice, 5, 1, TokenSizer(codec))
    assert found != await load_conversations(choice, 5, 2, TokenSizer(codec))


async def test_lengths_vary_within_the_ratio() -> None:
    choice = DatasetChoice(input_len=20, output_len=10, range_ratio=0.5)
    found = await load_conversations(choice, 40, 1, TokenSizer(ToyCodec()))
    lengths = {conversation.turns[0].max_tokens for conversation in found}
    assert min(lengths) >= 5
    assert max(lengths) <= 15
    assert len(lengths) > 5


async def test_conversations_have_a_system_prompt_and_all_requests() -> None:
    choice = DatasetChoice("conversation", input_len=8, num_turns=3)
    found = await load_conversations(choice, 7, 1, TokenSizer(ToyCodec()))
    assert [len(conversation.turns) for conversation in found] == [3, 3, 1]
    for conversation in found:
        roles = [[m["role"] for m in turn.messages] for turn in conversation.turns]
        assert roles[0] == ["system", "user"]
        assert roles[1:] == [["user"]] * (len(roles) - 1)


async def test_a_file_of_prompts_and_messages(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"prompt": "a", "max_tokens": 3}\n\n{"messages": [{"role": "user", "content": "b"}]}\n'
    )
    found = await load_conversations(DatasetChoice("jsonl", str(path)), 3, 0, None)
    turns = [conversation.turns[0] for conversation in found]
    assert [turn.messages[0]["content"] for turn in turns] == ["a", "b", "a"]
    assert [turn.max_tokens for turn in turns] == [3, 64, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no lines"),
        ("{", "p.jsonl:1 is not JSON"),
        ("[]", "p.jsonl:1 has no prompt"),
        ('{"prompt": 3}', "has no prompt"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens"),
    ],
)
async def test_a_wrong_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        await load_conversations(DatasetChoice("jsonl", str(path)), 1, 0, None)


def test_objectives_metrics_and_percentiles_are_checked() -> None:
    assert parse_objectives(["ttft:200 tpot:50", "e2el:9e3"]) == {
        "ttft": 200,
        "tpot": 50,
        "e2el": 9000,
    }
    assert parse_percentiles("50,99.9") == (50, 99.9)
    assert parse_metrics("ttft, itl") == ("ttft", "itl")
    for words in (["itl:3"], ["ttft"], ["ttft:-1"], ["ttft:x"]):
        with pytest.raises(ConfigError, match="--goodput"):
            parse_objectives(words)
    for text in ("", "101", "x"):
        with pytest.raises(ConfigError, match="--metric-percentiles"):
            parse_percentiles(text)
    with pytest.raises(ConfigError, match="--percentile-metrics"):
        parse_metrics("ttft,latency")
