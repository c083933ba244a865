"""The tokenizer of the phone agent: the text model's, with tokens added at its end.

Adds the marks of images and of the end of an answer, the fixed parts of actions, and every name of
the simulated phone as one token, so that finding a name on a screen is finding one vector. The ids
of the text model's tokens stay as they are.
"""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer

from hearth.demo_phone.messages import LAUNCHER_NAME, SCREEN_TITLE
from hearth.demo_phone.words import ALL_NAMES, QUERIES

BEGIN_OF_IMAGE = "<|begin_of_image|>"
IMAGE = "<|image|>"
END_OF_IMAGE = "<|end_of_image|>"
END_OF_ANSWER = "</answer>"
BEGIN_OF_VIDEO = "<|begin_of_video|>"
END_OF_VIDEO = "<|end_of_video|>"
VIDEO = "<|video|>"
ADDED_SPECIAL = (
    BEGIN_OF_IMAGE,
    IMAGE,
    END_OF_IMAGE,
    BEGIN_OF_VIDEO,
    VIDEO,
    END_OF_VIDEO,
    END_OF_ANSWER,
)
THINK = "<think>"
FIXED_PARTS = (
    THINK,
    "</think>",
    "<answer>",
    'do(action="Tap", element=[',
    'do(action="Type", text="',
    'do(action="Swipe", start=[',
    "], end=[",
    'do(action="Back")',
    'do(action="Home")',
    'do(action="Launch", app="',
    'finish(message="',
    '{"current_app": "',
    LAUNCHER_NAME,
    SCREEN_TITLE,
)
# A multiple of 64, so that the head's width is one; the last rows are of no token.
PADDED_VOCABULARY_SIZE = 3264


def names() -> tuple[str, ...]:
    """Every name of the phone in both languages, in a fixed order."""
    both = [(one.en, one.zh) for one in (*ALL_NAMES, *QUERIES.values())]
    return tuple(dict.fromkeys(text for pair in both for text in pair))


def extended_tokenizer(text_model: Path) -> Tokenizer:
    """The text model's tokenizer with the added tokens."""
    tokenizer = Tokenizer.from_file(str(text_model / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(one, special=True) for one in ADDED_SPECIAL])
    parts = [AddedToken(one, normalized=False) for one in FIXED_PARTS]
    # English names are whole words; Chinese has no blanks between words to go by.
    words = [AddedToken(one, single_word=one.isascii(), normalized=False) for one in names()]
    tokenizer.add_tokens([*parts, *words])
    if tokenizer.get_vocab_size() > PADDED_VOCABULARY_SIZE:
        raise ValueError(f"{tokenizer.get_vocab_size()} tokens > {PADDED_VOCABULARY_SIZE}")
    return tokenizer


def extended_embedding(
    embedding: torch.Tensor, tokenizer: Tokenizer, text_model: Path
) -> torch.Tensor:
    """The embedding [3264, hidden]: an added token begins near what it was spelt with.

    Random directions outweigh the mean of its pieces, because names must be easy to tell apart:
    the vision part learns to say them.
    """
    spelling = Tokenizer.from_file(str(text_model / "tokenizer.json"))
    generator = torch.Generator().manual_seed(0)
    size = float(embedding.pow(2).mean().sqrt())
    wide = torch.randn(PADDED_VOCABULARY_SIZE, embedding.shape[1], generator=generator) * size
    wide[: len(embedding)] = embedding
    for text, number in tokenizer.get_vocab().items():
        if number >= len(embedding) and text not in ADDED_SPECIAL:
            pieces = spelling.encode(text).ids
            wide[number] += 0.5 * embedding[pieces].mean(0)
    return wide


def added_special_tokens(tokenizer: Tokenizer) -> list[str]:
    """The special tokens of an extended tokenizer, in the order of their ids."""
    rows = json.loads(tokenizer.to_str())["added_tokens"]
    return [row["content"] for row in rows if row["special"]]
