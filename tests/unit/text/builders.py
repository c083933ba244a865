"""Small tokenizers of the kinds that models come with, built in memory."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

CORPUS = [
    "hello world, the quick brown fox jumps over the lazy dog.",
    "你好，世界！今天天气很好。我们用中文测试。",
    "emoji: 🙂🚀👨‍👩‍👧‍👦 é ü ñ — end",
    "def f(x):\n    return x + 1\n",
]
SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>"]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("é✓", special=False)])
    return tokenizer


def _pieces() -> dict[str, int]:
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for piece in ["▁", "▁▁", "▁hello", "lo", "▁wor", "ld", "好", "▁你", "!", "a", "▁a", "<think>"]:
        vocab.setdefault(piece, len(vocab))
    return vocab


def byte_fallback(strip: bool = True) -> Tokenizer:
    """As Llama 2's: byte fallback, and one space stripped from the start of the text."""
    tokenizer = Tokenizer(
        models.BPE(vocab=_pieces(), merges=[], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>"])
    return tokenizer


def metaspace(prepend_scheme: str = "always") -> Tokenizer:
    tokenizer = byte_fallback()
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    return tokenizer


def word_piece() -> Tokenizer:
    """A decoder that looks at neighbours: only the window can decode it."""
    vocab = {w: i for i, w in enumerate(["[UNK]", "hel", "##lo", "world", "##s", ",", "a", "'"])}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def save(tokenizer: Tokenizer, path: Path, **config: object) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path
