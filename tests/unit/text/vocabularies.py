"""Small vocabulary files other than tokenizer.json, trained or made in memory."""

from __future__ import annotations

import base64
import functools
import io
import json
import struct
from pathlib import Path
from typing import Any

import sentencepiece
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from hearth.engine.text.detokenizer import CHAR_OF_BYTE

CORPUS = [
    "the quick brown fox jumps over the lazy dog, and the dog sleeps.",
    "hello world! hello there, world of words; it's a small world.",
    "你好，世界！今天天气很好。我们用中文测试分词器。世界很大。",
    "def f(x):    return x + 1  # adds one",
    "１２３ ﬁne café naïve Ⅻ ｶﾞ prices: 100 200 3000 €",
    "emoji 🙂🚀 and 👨‍👩‍👧‍👦 together",
] * 12
SPECIAL = ["<s>", "</s>", "<unk>", "[INST]", "<0x0A>"]
FRAGMENTS = [
    *("hello", " world", "world", " ", "  ", "\n", "\t", "\r\n", "你好", "世界", "龘", "🙂", "🦜"),
    *("▁", "▁▁", "<u>", "<sep>x", "ｶﾞ", "ﬁ", "é", "e\u0301", "\u200b", "\u00a0", "\u3000", "\x00"),
    *("\x07", "\x7f", "\u2028", "\ufeff", "\ufffd", "123", "it's", "IT'S", "!!", "👨‍👩‍👧"),
]
texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=12).map("".join)
texts_with_specials = st.lists(
    st.sampled_from(FRAGMENTS + SPECIAL) | st.text(max_size=3), max_size=12
).map("".join)


@functools.cache
def sentencepiece_model(**options: Any) -> bytes:
    """A trained model; options are the trainer's."""
    buffer = io.BytesIO()
    defaults: dict[str, Any] = {
        "vocab_size": 420,
        "character_coverage": 0.98,
        "user_defined_symbols": "<u>,<sep>",
        "control_symbols": "[INST],<|im_end|>",
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=buffer, **{**defaults, **options}
    )
    return buffer.getvalue()


def llama_like() -> bytes:
    """BPE with byte fallback and untouched text, as Llama 2's and Mistral's."""
    return sentencepiece_model(
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols="",
    )


def with_pieces(model: bytes, pieces: list[str], score: float) -> bytes:
    """The model with more pieces, as people extend one: all of one score."""
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    known = {library.id_to_piece(i) for i in range(library.get_piece_size())}
    for piece in [piece for piece in pieces if piece not in known]:
        text = piece.encode()
        entry = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", score)
        model += b"\x0a" + bytes([len(entry)]) + entry
    return model


@functools.cache
def byte_vocabulary(size: int = 700) -> dict[bytes, int]:
    """Ranks of a byte-level BPE that was trained."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    byte_of = {char: byte for byte, char in CHAR_OF_BYTE.items()}
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return {bytes(byte_of[char] for char in token): rank for token, rank in vocabulary}


def rank_lines(ranks: dict[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(t) + b" %d\n" % rank for t, rank in ranks.items())


def directory(path: Path, name: str, content: bytes, **config: Any) -> Path:
    """A model directory's tokenizer files, without tokenizer.json."""
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(content)
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path
