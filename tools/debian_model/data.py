"""The token ids of both texts, encoded once and mapped from disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tools.debian_model.tokenizer import END_ID, read_documents

from hearth.core.errors import ConfigError

_BATCH_DOCUMENTS = 64


@dataclass(frozen=True, slots=True)
class Ids:
    """Both texts as uint16 [num_tokens], documents behind each other."""

    train_ids: NDArray[np.uint16]
    test_ids: NDArray[np.uint16]

    def draw(self, rng: np.random.Generator, num_sequences: int, length: int) -> torch.Tensor:
        """int64 [num_sequences, length + 1], from places drawn evenly."""
        starts = rng.integers(0, len(self.train_ids) - length - 1, num_sequences)
        rows = np.stack([self.train_ids[start : start + length + 1] for start in starts])
        return torch.from_numpy(rows.astype(np.int64))

    def test(self, num_sequences: int, length: int) -> torch.Tensor:
        """int64 [num_sequences, length + 1], evenly spread over the held-out text."""
        starts = np.linspace(0, len(self.test_ids) - length - 1, num_sequences).astype(int)
        rows = np.stack([self.test_ids[start : start + length + 1] for start in starts])
        return torch.from_numpy(rows.astype(np.int64))


def encode_texts(tokenizer: Tokenizer, corpus: Path, work: Path) -> Ids:
    """Encodes what is not encoded yet. Raises ConfigError (a text without tokens), OSError."""
    return Ids(
        _encoded(tokenizer, corpus / "train.txt", work / "train.u16"),
        _encoded(tokenizer, corpus / "test.txt", work / "test.u16"),
    )


def _encoded(tokenizer: Tokenizer, text: Path, path: Path) -> NDArray[np.uint16]:
    if not path.exists():
        draft = path.with_suffix(".part")
        documents = read_documents(text)
        with draft.open("wb") as file:
            for at in range(0, len(documents), _BATCH_DOCUMENTS):
                batch = documents[at : at + _BATCH_DOCUMENTS]
                for one in tokenizer.encode_batch(batch, add_special_tokens=False):
                    file.write(np.array([*one.ids, END_ID], np.uint16).tobytes())
        draft.replace(path)
    if path.stat().st_size == 0:
        raise ConfigError(
            f"{text} has no documents", hint="make it: python -m tools.debian_model.corpus"
        )
    return np.memmap(path, np.uint16, "r")
