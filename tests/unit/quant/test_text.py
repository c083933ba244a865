"""Texts of any size and kind: cut into sequences, or refused with the place that is wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.unit.text import builders

from hearth.core.errors import ConfigError
from hearth.engine.text.tokenizer import Tokenizer
from hearth.engine.text.tokenizer_config import TokenizerConfig
from hearth.quant.builtin_texts import text_path
from hearth.quant.text import CutText, TextSource, prefix_of


def letters(text: str) -> Sequence[int]:
    """A token a character."""
    return [ord(c) for c in text]


def cut(
    path: Path | str, context: int = 8, tokens: int = 1000, prefix: tuple[int, ...] = ()
) -> list[list[int]]:
    return list(TextSource(str(path)).sequences(letters, CutText(context, tokens, prefix)))


def written(tmp_path: Path, content: bytes | str) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_sequences_follow_each_other_and_the_last_is_shorter(tmp_path: Path) -> None:
    found = cut(written(tmp_path, "abcdefghijkl"), context=5)
    assert ["".join(map(chr, one)) for one in found] == ["abcde", "fghij", "kl"]


def test_a_tail_of_one_token_predicts_nothing(tmp_path: Path) -> None:
    assert len(cut(written(tmp_path, "abcdef"), context=5)) == 1
    # Behind a prefix it does.
    assert cut(written(tmp_path, "abcde"), context=5, prefix=(7,))[-1] == [7, ord("e")]


def test_every_sequence_begins_with_the_prefix(tmp_path: Path) -> None:
    found = cut(written(tmp_path, "abcdefgh"), context=5, prefix=(1, 2))
    assert [one[:2] for one in found] == [[1, 2]] * 3
    assert [len(one) for one in found] == [5, 5, 4]


def test_tokens_bound_the_text(tmp_path: Path) -> None:
    found = cut(written(tmp_path, "a" * 100), context=8, tokens=20)
    assert [len(one) for one in found] == [8, 8, 4]


def test_a_text_that_is_shorter_than_a_sequence_is_one(tmp_path: Path) -> None:
    assert [len(one) for one in cut(written(tmp_path, "abc"), context=512)] == [3]


@pytest.mark.parametrize(("content", "count"), [("", 0), ("a", 1)])
def test_a_text_without_a_token_to_predict_is_refused(
    tmp_path: Path, content: str, count: int
) -> None:
    with pytest.raises(ConfigError, match=rf"has {count} tokens; permitted: 2 or more"):
        cut(written(tmp_path, content))


def test_binary_is_refused_with_the_byte(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is binary: byte 5 is zero"):
        cut(written(tmp_path, b"hello\0world"))


@pytest.mark.parametrize("offset", [0, 3, 65_535, 65_536, 200_000])
def test_what_is_no_utf8_is_refused_with_the_byte(tmp_path: Path, offset: int) -> None:
    raw = b"a" * offset + b"\xe9l" + b"b" * 10
    with pytest.raises(ConfigError, match=rf"is not UTF-8: byte {offset:,}:"):
        cut(written(tmp_path, raw), tokens=10**6)


def test_a_character_that_the_end_cuts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="byte 4: unexpected end of data"):
        cut(written(tmp_path, b"good\xe4\xbd"))


def test_characters_on_the_border_of_two_reads_stay_whole(tmp_path: Path) -> None:
    for shift in range(3):
        content = "x" * (65_536 - 1 - shift) + "你好" * 10
        found = cut(written(tmp_path, content), context=10**6, tokens=10**6)
        assert found == [list(letters(content))]


@pytest.mark.parametrize("content", ["line\n" * 60_000, "no end " * 60_000, "x" * 600_000])
def test_long_texts_come_in_pieces_that_add_up(tmp_path: Path, content: str) -> None:
    pieces: list[str] = []

    def encode(piece: str) -> Sequence[int]:
        pieces.append(piece)
        return letters(piece)

    source = TextSource(str(written(tmp_path, content)))
    found = list(source.sequences(encode, CutText(1000, 10**6)))
    assert len(pieces) > 1
    assert "".join(pieces) == content
    assert sum(map(len, found)) == len(content)


def test_a_large_file_is_read_no_further_than_needed(tmp_path: Path) -> None:
    path = written(tmp_path, "a line of text\n" * 200_000 + "\udc80" * 0)
    with path.open("ab") as file:
        file.write(b"\xff\xfe")  # never reached
    source = TextSource(str(path))
    assert len(list(source.sequences(letters, CutText(100, 1000)))) == 10
    identity = source.identity
    assert identity.num_bytes < 200_000
    assert identity.name == "text.txt"
    used = path.read_bytes()[: identity.num_bytes]
    assert identity.sha256 == hashlib.sha256(used).hexdigest()


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        TextSource(str(tmp_path / "none.txt"))
    with pytest.raises(ConfigError, match="is a directory"):
        TextSource(str(tmp_path))


def test_the_builtin_text_is_prose_in_two_languages() -> None:
    found = text_path("builtin", "measuring").read_text(encoding="utf-8")
    assert 40_000 < len(found.encode()) < 100_000
    assert "the" in found
    assert "服务" in found
    assert cut("builtin", context=512, tokens=2000)[0][:6] == list(letters("hearth"))


def test_the_prefix_is_what_the_tokenizer_puts_before_a_text() -> None:
    from tokenizers.processors import TemplateProcessing

    plain = builders.byte_level()
    assert prefix_of(Tokenizer(plain, TokenizerConfig())) == ()
    dressed = builders.byte_level()
    dressed.post_processor = TemplateProcessing(
        single="<|user|> <|assistant|> $A <|endoftext|>",
        special_tokens=[("<|user|>", 1), ("<|assistant|>", 2), ("<|endoftext|>", 0)],
    )
    assert prefix_of(Tokenizer(dressed, TokenizerConfig())) == (1, 2)
