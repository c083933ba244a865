"""Writes a Llama of safetensors as GGUF and quantizes it: `convert_gguf.py SOURCE OUT FTYPE`.

In llama.cpp's own environment, by its own library. Its converter in the source distribution wants
torch and knows tokenizers by name only; this one reads the one model of the comparison.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

import gguf
import llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` → `blk.3.ffn_up.weight`."""
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        number, _, rest = stem.removeprefix("model.layers.").partition(".")
        return f"blk.{number}.{NAMES[rest]}.weight"
    return f"{NAMES[stem]}.weight"


def rotated_pairs(rows: NDArray[np.uint16], num_heads: int) -> NDArray[np.uint16]:
    """llama.cpp's Llama rotates neighbouring elements: halves of a head are interleaved."""
    shape = rows.shape
    halves = rows.reshape(num_heads, 2, shape[0] // num_heads // 2, shape[1])
    return halves.swapaxes(1, 2).reshape(shape)


def write(source: Path, out: Path) -> None:
    """The same numbers in bfloat16, norms in float32."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(str(out), "llama")
    write_config(writer, config)
    write_tokenizer(writer, json.loads((source / "tokenizer.json").read_text(encoding="utf-8")))
    raw = np.memmap(source / "model.safetensors", np.uint8, "r")
    length = int(raw[:8].view(np.uint64)[0])
    header = json.loads(bytes(raw[8 : 8 + length]))
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        rows = raw[begin:end].view(np.uint16).reshape(entry["shape"])
        if ".q_proj" in name:
            rows = rotated_pairs(rows, config["num_attention_heads"])
        if ".k_proj" in name:
            rows = rotated_pairs(rows, config["num_key_value_heads"])
        if rows.ndim == 1:
            writer.add_tensor(gguf_name(name), (rows.astype(np.uint32) << 16).view(np.float32))
        else:
            data = np.ascontiguousarray(rows).view(np.uint8)
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(gguf_name(name), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_config(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """The keys that a Llama needs."""
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or config  # transformers 5 keeps it there
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])


def write_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, Any]) -> None:
    """Byte-level BPE as GPT-2's."""
    vocabulary = tokenizer["model"]["vocab"]
    special = {token["id"] for token in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [
            gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL
            for i in range(len(tokens))
        ]
    )
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)


def main() -> None:
    """Writes and quantizes."""
    source, out, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    plain = out.with_suffix(".bf16")
    write(source, plain)
    params = lib.llama_model_quantize_default_params()
    params.nthread = len(os.sched_getaffinity(0))
    params.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{kind}")
    code = lib.llama_model_quantize(str(plain).encode(), str(out).encode(), ctypes.byref(params))
    plain.unlink()
    if code != 0:
        raise SystemExit(f"llama_model_quantize returned {code}")


if __name__ == "__main__":
    main()
