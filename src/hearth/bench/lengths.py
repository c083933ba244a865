"""Sizers: cut a text to a number of tokens, by the tokenizer of the model that is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hearth.client.asynchronous import AsyncClient
from hearth.core.errors import ConfigError, RemoteError
from hearth.core.paths import home_expanded

_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Sized:
    """A text and how many tokens it has."""

    text: str
    num_tokens: int


class Sizer(Protocol):
    """Cuts texts by tokens."""

    async def cut(self, text: str, num_tokens: int) -> Sized:
        """The beginning of `text` with `num_tokens` tokens, or with a few less."""
        ...


class Codec(Protocol):
    """Text to tokens and back, wherever the tokenizer is."""

    async def encode(self, text: str) -> list[int]:
        """Token ids without special tokens."""
        ...

    async def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        ...


class TokenSizer:
    """Cuts tokens, and looks again: the text of a cut may be other tokens."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    async def cut(self, text: str, num_tokens: int) -> Sized:
        """See Sizer; a text that is too short is repeated."""
        tokens = await self._codec.encode(text)
        while tokens and len(tokens) < num_tokens:
            tokens = tokens * 2
        keep = num_tokens
        for _ in range(_ATTEMPTS):
            found = await self._codec.decode(tokens[:keep])
            count = len(await self._codec.encode(found))
            if count <= num_tokens or keep <= 1:
                break
            keep = max(1, keep - (count - num_tokens))
        return Sized(found, count)


class ServerCodec:
    """The served tokenizer, by `/tokenize` and `/detokenize` as hearth and vLLM have them."""

    def __init__(self, client: AsyncClient, model: str) -> None:
        self._client = client
        self._model = model

    async def check(self) -> None:
        """Raises ConfigError where the server has no such endpoints."""
        try:
            await self.decode(await self.encode("hearth"))
        except (RemoteError, KeyError, TypeError) as error:
            raise ConfigError(
                f"the server does not tokenize ({error}), so texts of a number of tokens cannot "
                "be made",
                hint="name a directory with the model's tokenizer.json: --tokenizer DIRECTORY; or "
                "use --dataset-name jsonl",
            ) from error

    async def encode(self, text: str) -> list[int]:
        """See Codec."""
        body = {"model": self._model, "prompt": text, "add_special_tokens": False}
        answer = await self._client.post("/tokenize", body)
        return [int(token) for token in answer["tokens"]]

    async def decode(self, tokens: Sequence[int]) -> str:
        """See Codec."""
        body = {"model": self._model, "tokens": list(tokens)}
        return str((await self._client.post("/detokenize", body))["prompt"])


class LocalCodec:
    """The tokenizer of a model directory."""

    def __init__(self, model_dir: str) -> None:
        """Raises TokenizerError."""
        from hearth.engine.text.tokenizer import Tokenizer

        self._tokenizer = Tokenizer.load(home_expanded(model_dir))

    async def encode(self, text: str) -> list[int]:
        """See Codec."""
        return self._tokenizer.encode(text)

    async def decode(self, tokens: Sequence[int]) -> str:
        """See Codec."""
        return self._tokenizer.decode(tokens)
