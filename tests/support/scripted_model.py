"""A model that always answers with the same text, cut into tokens as a test wants it.

Each piece of the text is a token behind the built-in vocabulary. Embeddings are unit vectors, the
one layer adds nothing, and the head takes the end of a chat's prompt to the first piece, and each
piece to the next.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tests.unit.models.checkpoints import LLAMA, write_config, write_safetensors
from tools.demo_model import TEXT_MODEL_DIR

LINE_FEED = 205  # the last token of a prompt
HIDDEN, HEADS = 32, 2


def write_scripted_model(directory: Path, pieces: Sequence[str]) -> Path:
    """`pieces`: different ones, at most 30. Returns the directory."""
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TEXT_MODEL_DIR / name, directory)
    tokenizer = json.loads((TEXT_MODEL_DIR / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((TEXT_MODEL_DIR / "config.json").read_text(encoding="utf-8"))
    end, first = config["eos_token_id"][0], config["vocab_size"]
    plain = {**tokenizer["added_tokens"][0], "special": False}
    tokenizer["added_tokens"] += [
        {**plain, "id": first + i, "content": piece} for i, piece in enumerate(pieces)
    ]
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    write_config(
        directory,
        LLAMA,
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=first + len(pieces),
        max_position_embeddings=512,
        eos_token_id=end,
    )
    _write_weights(directory, [LINE_FEED, *range(first, first + len(pieces))], end)
    return directory


def _write_weights(directory: Path, chain: Sequence[int], end: int) -> None:
    """After each token of the chain comes the next one, after the last the end, or anything."""
    vocab_size = chain[-1] + 1
    embedding = np.zeros((vocab_size, HIDDEN), np.float32)
    head = np.zeros((vocab_size, HIDDEN), np.float32)
    embedding[:, 0] = 1
    for at, (token, following) in enumerate(zip(chain, [*chain[1:], end], strict=True), 1):
        embedding[token, [0, at]] = 0, 1
        head[following, at] = 1
    base, intermediate = "model.layers.0", LLAMA["intermediate_size"]
    norms = ("model.norm", f"{base}.input_layernorm", f"{base}.post_attention_layernorm")
    attention = {f"{base}.self_attn.{part}_proj.weight": (HIDDEN, HIDDEN) for part in "qkvo"}
    mlp = {f"{base}.mlp.{part}_proj.weight": (intermediate, HIDDEN) for part in ("gate", "up")}
    mlp[f"{base}.mlp.down_proj.weight"] = (HIDDEN, intermediate)
    tensors = {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": head,
        **{f"{norm}.weight": np.ones(HIDDEN, np.float32) for norm in norms},
        **{name: np.zeros(shape, np.float32) for name, shape in (attention | mlp).items()},
    }
    write_safetensors(directory / "model.safetensors", tensors)
