"""The tokenizer of the Debian model: `python -m tools.debian_model.tokenizer CORPUS MODEL`.

Byte-level BPE of 8,192 tokens, trained on the text to train on alone. One special token ends a
document; digits stand alone, so that numbers do not fill the vocabulary.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tools.debian_model.corpus import DOCUMENT_END

VOCABULARY_SIZE = 8192
END_ID = 0
MAX_CONTEXT_TOKENS = 2048
# Merges of so small a vocabulary are settled by a part of the text: one document in so many.
SAMPLE_ONE_IN = 4


def train(text: Path) -> Tokenizer:
    """A tokenizer of a text of documents that DOCUMENT_END divides. Raises OSError."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(DOCUMENT_END, special=True)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(text), trainer)
    return tokenizer


def _sample(text: Path) -> Iterator[str]:
    for number, document in enumerate(read_documents(text)):
        if number % SAMPLE_ONE_IN == 0:
            yield document


def read_documents(text: Path) -> list[str]:
    """The documents of a text, without their ends. Raises OSError."""
    parts = text.read_text(encoding="utf-8").split(f"\n{DOCUMENT_END}\n")
    return [part for part in parts if part]


def save(tokenizer: Tokenizer, directory: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": DOCUMENT_END,
        "pad_token": DOCUMENT_END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_CONTEXT_TOKENS,
    }
    text = json.dumps(config, indent=2) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="what tools.debian_model.corpus wrote")
    parser.add_argument("model", type=Path, help="where the tokenizer goes")
    given = parser.parse_args()
    tokenizer = train(given.corpus / "train.txt")
    save(tokenizer, given.model)
    sample = (given.corpus / "test.txt").read_text(encoding="utf-8")[:200_000]
    tokens = len(tokenizer.encode(sample, add_special_tokens=False).ids)
    print(f"{tokenizer.get_vocab_size()} tokens; {len(sample) / tokens:.2f} characters a token")


if __name__ == "__main__":
    main()
