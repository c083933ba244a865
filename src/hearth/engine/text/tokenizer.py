"""The tokenizer of a model directory: text to token ids, and the pieces that ids stand for.

Wraps the `tokenizers` library and reads tokenizer.json, tokenizer_config.json and
special_tokens_map.json; where there is no tokenizer.json, another vocabulary file
(text.vocabulary_file). It never imports transformers and never adds special tokens on its own: a
rendered chat prompt already holds them.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from hearth.core.errors import TokenizerError
from hearth.engine.text.detokenizer import (
    BYTE_MARK,
    ByteDetokenizer,
    Detokenizer,
    PieceDetokenizer,
    WindowDetokenizer,
    rules_of_decoder,
)
from hearth.engine.text.length import longest_token_chars
from hearth.engine.text.tokenizer_config import TokenizerConfig, config_of, read_settings

# Above this many characters a prompt is encoded in a thread: about 2 ms of work.
THREAD_THRESHOLD_CHARS = 8192
# A long prompt takes some 100 bytes a character while it is encoded: so many at a time.
MAX_THREADS = 2


class TextEncoder(Protocol):
    """Cuts text in place of the `tokenizers` library."""

    longest_chars: int | None  # no token stands for more characters of a text; None: unknown

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids; safe to call from several threads."""
        ...


class Tokenizer:
    """Encodes and decodes; safe to use from several threads once loaded.

    With an `encoder`, `backend` only decodes and knows the vocabulary.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        config: TokenizerConfig,
        encoder: TextEncoder | None = None,
    ) -> None:
        # A checkpoint may carry training-time truncation or padding: a silently cut prompt.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._encoder = encoder
        self.config = config
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self._rules = rules_of_decoder(_decoder_state(backend))
        self._pieces: dict[int, bytes | None] = {}
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.num_tokens = len(vocabulary)
        self._largest = max(vocabulary.items(), key=lambda item: item[1], default=("", -1))
        self._longest_chars = (
            longest_token_chars(backend, vocabulary) if encoder is None else encoder.longest_chars
        )
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="hearth-encode")

    @classmethod
    def load(cls, model_dir: Path) -> Tokenizer:
        """Reads the files of a model directory.

        Raises:
            TokenizerError: there is no vocabulary, or a file cannot be read.
        """
        path = model_dir / "tokenizer.json"
        if not path.is_file():
            return cls._load_vocabulary(model_dir)
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception for every fault of a file
            raise TokenizerError(
                f"{path} cannot be read as a tokenizer: {error}",
                hint="download the file again; a few hundred bytes are a Git LFS pointer",
            ) from error
        return cls(backend, config_of(read_settings(model_dir)))

    @classmethod
    def _load_vocabulary(cls, model_dir: Path) -> Tokenizer:
        from hearth.engine.text import vocabulary_file  # the rare case pays for its imports

        settings = read_settings(model_dir)
        vocabulary = vocabulary_file.load(model_dir, settings)
        config = config_of({**vocabulary.special_tokens, **settings})
        return cls(vocabulary.backend, config, vocabulary.encoder)

    @property
    def eos_token_id(self) -> int | None:
        """Id of the end-of-sequence token that the configuration names."""
        text = self.config.special_tokens.get("eos_token")
        return None if text is None else self.token_id(text)

    def token_id(self, text: str) -> int | None:
        """Id of the token with exactly this text."""
        return self._backend.token_to_id(text)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises TokenizerError when the tokenizer can produce ids that the model does not have."""
        token, largest = self._largest
        if largest >= vocab_size:
            raise TokenizerError(
                f"the tokenizer's token {token!r} has id {largest}, but the model's vocabulary has "
                f"{vocab_size} entries (permitted ids: 0 to {vocab_size - 1})",
                hint="tokenizer.json and config.json belong to different models or versions",
            )

    def has_vocabulary_of(self, other: Tokenizer) -> bool:
        """Whether both know the same tokens under the same ids."""
        mine, theirs = (t._backend.get_vocab(with_added_tokens=True) for t in (self, other))
        return bool(mine == theirs)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of `text`; special tokens written in it count as such.

        `add_special_tokens` adds those that the tokenizer's own files put around a text.
        """
        if self._encoder is not None:
            return self._encoder.encode(text, add_special_tokens=add_special_tokens)
        # encode_batch_fast releases the interpreter lock, encode does not (tokenizers 0.23).
        batch = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(batch[0].ids)

    async def encode_async(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Like `encode`; long texts are encoded off the event loop."""
        if len(text) <= THREAD_THRESHOLD_CHARS:
            return self.encode(text, add_special_tokens=add_special_tokens)
        work = functools.partial(self.encode, text, add_special_tokens=add_special_tokens)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def least_tokens(self, text: str) -> int:
        """`text` gives at least so many tokens; takes no time. 0 where no bound is known."""
        return 0 if self._longest_chars is None else -(-len(text) // self._longest_chars)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text that a detokenizer gives for these ids in one go."""
        detokenizer = self.detokenizer()
        return detokenizer.feed(token_ids) + detokenizer.flush()

    def decode_reference(self, token_ids: Sequence[int]) -> str:
        """The `tokenizers` library's own decoding, special tokens left out."""
        return str(self._backend.decode(list(token_ids), skip_special_tokens=True))

    def decode_all(self, token_ids: Sequence[int]) -> str:
        """The library's own decoding with special tokens as their texts."""
        return str(self._backend.decode(list(token_ids), skip_special_tokens=False))

    def token_text(self, token_id: int) -> str | None:
        """The vocabulary's entry of an id, as the tokenizer's files write it."""
        return self._backend.id_to_token(token_id)

    def detokenizer(self) -> Detokenizer:
        """A fresh incremental decoder for one answer; special tokens give no text."""
        if self._rules is None:
            return WindowDetokenizer(self.decode_reference)
        if self._rules.byte_level:
            return ByteDetokenizer(self._piece)
        return PieceDetokenizer(self._rules, self._piece)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for by itself, a special one for its own text.

        May be a part of a character; empty for an id that the tokenizer does not know.
        """
        text = self._backend.id_to_token(token_id)
        if text is None:
            return b""
        if self._rules is None or token_id in self._special_ids:
            return text.encode("utf-8", "replace")
        piece = self._rules.piece_of(text)
        if self._rules.metaspace:
            return piece.replace(self._rules.metaspace.encode(), b" ")
        return piece[1:] if piece.startswith(BYTE_MARK) else piece

    def _piece(self, token_id: int) -> bytes | None:
        """Encoded piece of a token (see DecodeRules.piece_of); None: it gives no text."""
        try:
            return self._pieces[token_id]
        except KeyError:
            pass
        assert self._rules is not None
        text = None if token_id in self._special_ids else self._backend.id_to_token(token_id)
        piece = None if text is None else self._rules.piece_of(text)
        self._pieces[token_id] = piece
        return piece


def _decoder_state(backend: tokenizers.Tokenizer) -> dict[str, Any] | None:
    """The decoder's own description; serializing the whole tokenizer would take a second."""
    if backend.decoder is None:
        return None
    state: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    return state
