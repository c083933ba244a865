"""Tokenizer files: read whole, refused clearly."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.text import builders, vocabularies
from tokenizers import AddedToken, normalizers, pre_tokenizers

from hearth.core.errors import TokenizerError
from hearth.engine.text.tokenizer import THREAD_THRESHOLD_CHARS, Tokenizer
from hearth.engine.text.tokenizer_config import TokenizerConfig


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return builders.save(
        builders.byte_level(),
        tmp_path,
        eos_token={"content": "<|endoftext|>", "special": True},
        bos_token=None,
    )


def test_special_tokens_are_given_as_text_or_object(model_dir: Path) -> None:
    tokenizer = Tokenizer.load(model_dir)
    assert tokenizer.config.special_tokens == {"eos_token": "<|endoftext|>"}
    assert tokenizer.eos_token_id == tokenizer.token_id("<|endoftext|>") == 0


def test_special_tokens_in_a_prompt_count_and_none_are_added(model_dir: Path) -> None:
    ids = Tokenizer.load(model_dir).encode("<|user|>hello")
    assert ids[0] == 1
    assert len(ids) > 1


async def test_a_long_prompt_does_not_stop_the_event_loop(model_dir: Path) -> None:
    tokenizer = Tokenizer.load(model_dir)
    text = "hello 你好 " * (THREAD_THRESHOLD_CHARS // 2)
    task = asyncio.create_task(tokenizer.encode_async(text))
    turns = 0
    while not task.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert await task == tokenizer.encode(text)
    assert turns > 1


def test_truncation_of_the_training_run_is_not_applied(tmp_path: Path) -> None:
    backend = builders.byte_level()
    backend.enable_truncation(4)
    tokenizer = Tokenizer.load(builders.save(backend, tmp_path))
    assert len(tokenizer.encode("the quick brown fox " * 10)) > 4


def test_a_missing_tokenizer_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"x", "neither a SentencePiece model nor"),
        (b"\n" * 5000, "neither a SentencePiece model nor"),
        (vocabularies.llama_like()[:2000], "neither a SentencePiece model nor"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!DOCTYPE html>", "neither a SentencePiece model nor"),
    ],
)
def test_a_damaged_vocabulary_is_a_clear_error(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(tmp_path)


def test_a_huge_vocabulary_is_not_even_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.model").open("wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(TokenizerError, match="at most"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"version https://git-lfs", b"\xff\xfe"])
def test_a_corrupt_tokenizer_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match="cannot be read as a tokenizer"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_corrupt_tokenizer_config_is_a_clear_error(model_dir: Path, content: str) -> None:
    (model_dir / "tokenizer_config.json").write_text(content)
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json"):
        Tokenizer.load(model_dir)


def test_a_vocabulary_larger_than_the_models_is_refused(model_dir: Path) -> None:
    tokenizer = Tokenizer.load(model_dir)
    tokenizer.check_vocabulary(tokenizer.num_tokens)
    with pytest.raises(TokenizerError, match="different models") as caught:
        tokenizer.check_vocabulary(tokenizer.num_tokens - 1)
    assert str(tokenizer.num_tokens - 1) in caught.value.message


def _bounded(normalizer: normalizers.Normalizer | None) -> Tokenizer:
    backend = builders.byte_level()
    if normalizer is not None:
        backend.normalizer = normalizer
    return Tokenizer(backend, TokenizerConfig())


BOUNDED = [_bounded(None), _bounded(normalizers.NFC())]
PIECES = [
    "hello",
    " world",
    "你好",
    "🙂",
    "e\u0301",
    "α\u0313\u0300\u0345",
    "\n",
    "<|user|>",
    "<think>",
]


@pytest.mark.parametrize("tokenizer", BOUNDED, ids=["plain", "NFC"])
@given(text=st.lists(st.sampled_from(PIECES)).map("".join) | st.text())
def test_the_least_number_of_tokens_is_never_above_the_real_one(
    tokenizer: Tokenizer, text: str
) -> None:
    assert tokenizer.least_tokens("x" * 10_000) > 50  # there is a bound at all
    assert tokenizer.least_tokens(text) <= len(tokenizer.encode(text))


def test_no_least_number_is_claimed_where_text_can_vanish() -> None:
    def least(backend: tokenizers.Tokenizer) -> int:
        return Tokenizer(backend, TokenizerConfig()).least_tokens("x" * 1000)

    stripping, removing, swallowing = (builders.byte_level() for _ in range(3))
    stripping.normalizer = normalizers.Strip()
    split = pre_tokenizers.Split(" ", "removed")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    removing.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    swallowing.add_tokens([AddedToken("<mask>", lstrip=True)])
    assert [least(b) for b in (stripping, removing, swallowing)] == [0, 0, 0]
