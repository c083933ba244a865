"""A model without a family file through `hearth serve`: served, and the degradation is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tests.integration.server import SMALL, Server
from tools.demo_model import TEXT_MODEL_DIR
from transformers import AutoModelForCausalLM, Olmo2Config

from hearth.engine.text.tokenizer import Tokenizer

NUM_TOKENS = 24


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OLMo 2 with the text model's tokenizer."""
    path = tmp_path_factory.mktemp("olmo2")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (TEXT_MODEL_DIR / name).is_file():
            shutil.copy(TEXT_MODEL_DIR / name, path / name)
    vocab_size = json.loads((TEXT_MODEL_DIR / "config.json").read_text())["vocab_size"]
    torch.manual_seed(3)
    config = Olmo2Config(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=None,
        pad_token_id=None,
        initializer_range=0.3,
    )
    auto: Any = AutoModelForCausalLM
    auto.from_config(config).save_pretrained(path)
    return path


def test_it_answers_as_transformers_does_and_says_what_it_is(
    model_dir: Path, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(model_dir)
    prompt = tokenizer.encode("The hearth is warm and the night is long.")
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(model_dir)
    expected = model.generate(
        torch.tensor([prompt]), max_new_tokens=NUM_TOKENS, do_sample=False, pad_token_id=0
    )[0, len(prompt) :].tolist()
    with Server(tmp_path, str(model_dir), *SMALL, "--max-num-batched-tokens", "7") as server:
        body = {
            "prompt": list(prompt),
            "max_tokens": NUM_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
        }
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["text"] == tokenizer.decode(expected)
        assert answer.json()["usage"]["completion_tokens"] == NUM_TOKENS
        assert server.health()["executor"] == "automodel"
        assert "running on: automodel: transformers" in server.stdout
        assert "warning: served through transformers' own model" in server.stdout
        assert "no family file for Olmo2ForCausalLM" in server.stdout
        assert "not bit-identical" in server.stdout
        assert "engine_degraded executor=automodel" in server.stderr
        front_end = Path(f"/proc/{server.popen.pid}/maps").read_text(encoding="utf-8")
        assert "/torch/" not in front_end
        assert server.stop() == 0
        assert "Traceback" not in server.stderr
