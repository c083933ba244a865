"""The vocabulary of a model directory that has no tokenizer.json.

Finds the file, tells by its content what it is, and has the right module read it. Imported only
where there is no tokenizer.json: neither the `sentencepiece` library nor a conversion costs
anybody else anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from hearth.core.errors import TokenizerError
from hearth.engine.text import tiktoken_ranks
from hearth.engine.text.tokenizer import TextEncoder
from hearth.engine.text.tokenizer_config import read_object

# The name does not say what is inside: tokenizer.model may be either kind.
_NAMES = ("tokenizer.model", "spiece.model", "tiktoken.model")
# The largest vocabularies in use (262,000 pieces) take 5 MB.
MAX_FILE_BYTES = 128 * 2**20


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a file gave; without an encoder, `backend` encodes too."""

    backend: tokenizers.Tokenizer
    encoder: TextEncoder | None
    special_tokens: Mapping[str, str]  # those that the vocabulary names itself


def load(model_dir: Path, settings: Mapping[str, Any]) -> Vocabulary:
    """Reads the directory's vocabulary file; `settings` come from its tokenizer_config.json.

    Raises:
        TokenizerError: there is none, or it is damaged, or it cannot be read exactly.
    """
    path = _find(model_dir)
    data = _read(path)
    added = read_object(model_dir / "added_tokens.json")
    if tiktoken_ranks.is_tiktoken(data):
        ranks = tiktoken_ranks.load(data, settings, added, path)
        return Vocabulary(ranks.backend, None, ranks.special_tokens)
    from hearth.engine.text import sentencepiece_model  # 37 ms that ranks do not need

    pieces = sentencepiece_model.load(data, settings, added, path)
    return Vocabulary(pieces.backend, pieces.encoder, pieces.special_tokens)


def _find(model_dir: Path) -> Path:
    candidates = [model_dir / name for name in _NAMES] + sorted(model_dir.glob("*.tiktoken"))
    for path in candidates:
        if path.is_file():
            return path
    raise TokenizerError(
        f"{model_dir} has no tokenizer.json, no SentencePiece model ({', '.join(_NAMES[:2])}) and "
        "no tiktoken vocabulary",
        hint="download the model's tokenizer files into the directory",
    )


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise TokenizerError(
                f"{path} has {size:,} bytes; a vocabulary has {MAX_FILE_BYTES:,} at most",
                hint="this looks like weights under a wrong name: download the file again",
            )
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from error
    if not data:
        raise TokenizerError(f"{path} is empty", hint="download the file again")
    if data.startswith(b"version https://git-lfs"):
        raise TokenizerError(
            f"{path} is a Git LFS pointer, not the file itself",
            hint="run `git lfs pull` in the directory, or download the file again",
        )
    return data
