"""The one model of the comparison, with random weights, and its form for every engine.

Llama-shaped, 1.47 billion parameters, bfloat16, drawn from a fixed seed; every token of its
tokenizer has a text of its own, so that a streamed token is always seen. Conversions run in the
environments of their engines, with the tools that those bring, into `CACHE_DIR/models`.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import string
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.peers.environments import python_of

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32768,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 22,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 0,
}
SPECIALS = ("<|endoftext|>", "<|bos|>", "<|user|>", "<|assistant|>")
FIRST_PLAIN_TOKEN = 256  # prompts use ids from here on
DEVIATION = 0.03
# What each variant is made from, in the environment of which engine.
VARIANTS = {
    "hf": "hearth",
    "gguf-q4_0": "llama.cpp",
    "openvino-int4": "openvino",
    "openvino-int8": "openvino",
    "onnx-int4": "onnxruntime",
}


def path_of(variant: str, cache_dir: Path) -> Path:
    """Where a variant lies: a directory, or the GGUF file."""
    place = cache_dir / "models" / variant
    return place / "model.gguf" if variant.startswith("gguf") else place


def make(variant: str, cache_dir: Path) -> None:
    """Makes a variant unless it is there. Raises CalledProcessError, OSError."""
    place = cache_dir / "models" / variant
    if place.exists():
        print(f"{variant}: is there", flush=True)
        return
    if variant != "hf":
        make("hf", cache_dir)
    print(f"{variant}: is being made", flush=True)
    fresh = place.with_name(f"{variant}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        if variant == "hf":
            write_model(fresh)
        else:
            command = _command(variant, cache_dir, fresh)
            subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        fresh.rename(place)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _command(variant: str, cache_dir: Path, out: Path) -> list[str]:
    source = str(path_of("hf", cache_dir))
    python = python_of(VARIANTS[variant], cache_dir)
    if variant == "gguf-q4_0":
        script = Path(__file__).parent / "workers" / "convert_gguf.py"
        return [str(python), str(script), source, str(out / "model.gguf"), "Q4_0"]
    if variant == "onnx-int4":
        builder = ["-m", "onnxruntime_genai.models.builder", "-i", source, "-o", str(out)]
        extra = ["--extra_options", "int4_accuracy_level=4", "int4_block_size=32"]
        return [str(python), *builder, "-p", "int4", "-e", "cpu", *extra]
    weights = {
        "openvino-int4": ["int4", "--group-size", "128", "--ratio", "1.0"],
        "openvino-int8": ["int8"],
    }[variant]
    export = [str(python.with_name("optimum-cli")), "export", "openvino", "-m", source]
    return [*export, "--task", "text-generation-with-past", "--weight-format", *weights, str(out)]


def write_model(directory: Path) -> None:
    """config.json, a tokenizer and one file of weights."""
    generation = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
    special = {"bos_token": SPECIALS[1], "eos_token": SPECIALS[0], "pad_token": SPECIALS[0]}
    for name, body in (
        ("config.json", CONFIG),
        ("generation_config.json", generation),
        ("tokenizer.json", tokenizer(CONFIG["vocab_size"])),
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special}),
    ):
        (directory / name).write_text(json.dumps(body, indent=1), encoding="utf-8")
    _write_weights(directory / "model.safetensors")


def tokenizer(size: int) -> dict[str, Any]:
    """Byte-level BPE over ASCII: all pairs of letters, then pairs of pairs until it is full."""
    ascii_names = [chr(c) if 32 < c < 127 else chr(256 + min(c, 33)) for c in range(128)]
    tokens = [*SPECIALS, *ascii_names]
    merges: list[list[str]] = []
    letters = string.ascii_lowercase
    pairs = [a + b for a, b in itertools.product(letters, letters)]
    parts = itertools.chain(itertools.product(letters, letters), itertools.product(pairs, pairs))
    for left, right in parts:
        if len(tokens) == size:
            break
        tokens.append(left + right)
        merges.append([left, right])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, **flags, "special": True} for i, text in enumerate(SPECIALS)
        ],
        "normalizer": None,
        "pre_tokenizer": {**level, "use_regex": True},
        "post_processor": None,
        "decoder": {**level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def _tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner, vocabulary = (
        CONFIG[name] for name in ("hidden_size", "intermediate_size", "vocab_size")
    )
    queries = CONFIG["num_attention_heads"] * CONFIG["head_dim"]
    keys = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.self_attn.q_proj.weight", (queries, hidden)
        yield f"{layer}.self_attn.k_proj.weight", (keys, hidden)
        yield f"{layer}.self_attn.v_proj.weight", (keys, hidden)
        yield f"{layer}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        yield f"{layer}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{layer}.mlp.up_proj.weight", (inner, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def _write_weights(path: Path) -> None:
    """safetensors: eight bytes of length, a header in JSON, the tensors behind each other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in _tensors():
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape in _tensors():
            values = (
                np.ones(shape, np.float32)
                if len(shape) == 1
                else random.standard_normal(shape, np.float32) * np.float32(DEVIATION)
            )
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
