"""Two starts of the real server on a model that is large enough for a cache."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.integration.server import SMALL, Server
from tests.unit.models.checkpoints import LLAMA, write_config, write_safetensors
from tools.demo_model import TEXT_MODEL_DIR

from hearth.kernels.packed_cache import COMPLETE

WIDE = 24_000  # of an MLP, so that one layer takes 74 MB: above what is worth a file
HIDDEN, HEADS = 256, 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wide")
    built_in = json.loads((TEXT_MODEL_DIR / "config.json").read_text(encoding="utf-8"))
    for pattern in ("tokenizer*.json", "*.jinja"):
        for path in TEXT_MODEL_DIR.glob(pattern):
            shutil.copy(path, directory)
    vocabulary = built_in["vocab_size"]
    changes: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "eos_token_id": built_in["eos_token_id"],
    }
    write_config(directory, LLAMA, **changes)
    random = np.random.default_rng(0)
    base = "model.layers.0"
    shapes = {
        "model.embed_tokens.weight": (vocabulary, HIDDEN),
        **{f"{base}.self_attn.{part}_proj.weight": (HIDDEN, HIDDEN) for part in "qkvo"},
        f"{base}.mlp.gate_proj.weight": (WIDE, HIDDEN),
        f"{base}.mlp.up_proj.weight": (WIDE, HIDDEN),
        f"{base}.mlp.down_proj.weight": (HIDDEN, WIDE),
    }
    tensors = {
        name: random.standard_normal(shape, np.float32) / 16 for name, shape in shapes.items()
    }
    for norm in ("model.norm", f"{base}.input_layernorm", f"{base}.post_attention_layernorm"):
        tensors[f"{norm}.weight"] = np.ones(HIDDEN, np.float32)
    write_safetensors(directory / "model.safetensors", tensors)
    return directory


def kept(cache: Path) -> list[Path]:
    return sorted(cache.glob(f"*{COMPLETE}"))


def start(log_dir: Path, model: Path, cache: Path, *more: str) -> Server:
    log_dir.mkdir()
    return Server(log_dir, str(model), *SMALL, "--weight-cache-dir", str(cache), *more)


def test_the_second_start_maps_what_the_first_has_packed(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with start(tmp_path / "first", model, cache) as server:
        assert "weight cache: written" in server.stdout
        first = server.ask("What is hearth?", max_tokens=8)
        assert server.stop() == 0  # at once: the file is finished all the same
    assert len(kept(cache)) == 1
    with start(tmp_path / "second", model, cache) as server:
        assert "weight cache: mapped" in server.stdout
        maps = Path(f"/proc/{server.engine_pid}/maps").read_text(encoding="utf-8")
        assert str(kept(cache)[0]) in maps
        assert str(model) not in maps
        assert server.ask("What is hearth?", max_tokens=8) == first
    assert "warning" not in server.stderr.lower()


def test_two_servers_that_start_at_once_both_serve(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    one = start(tmp_path / "one", model, cache)
    two = start(tmp_path / "two", model, cache)
    with one, two:
        assert one.ask("Hi", max_tokens=4) == two.ask("Hi", max_tokens=4)
        deadline = time.monotonic() + 30
        while not kept(cache):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert len(list(cache.iterdir())) == 1
