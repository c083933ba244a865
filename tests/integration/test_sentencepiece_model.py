"""A model directory whose only vocabulary is a SentencePiece model: served, streamed, refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import sentencepiece
import torch
from tests.integration.server import SMALL, Server, free_port, run_to_end
from tests.support.hf_models import ModelCase, build_model
from tests.unit.text.vocabularies import directory, llama_like

TEMPLATE = "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }}{{ eos_token }}{% endfor %}"
QUESTION = "hello 世界 🙂"
NUM_TOKENS = 32


@pytest.fixture(scope="module")
def library() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=llama_like())


@pytest.fixture(scope="module")
def model(library: sentencepiece.SentencePieceProcessor) -> Any:
    """Weights at random: their answers run through all kinds of tokens, bytes among them."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": library.get_piece_size(),
    }
    return build_model(ModelCase("sentencepiece", "llama", 5, sizes))


@pytest.fixture(scope="module")
def server(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("sentencepiece")
    model.save_pretrained(path)
    directory(path, "tokenizer.model", llama_like(), legacy=False, chat_template=TEMPLATE)
    with Server(tmp_path_factory.mktemp("server"), str(path), *SMALL) as found:
        yield found
        assert found.stop() == 0
        assert "Traceback" not in found.stderr


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", max_retries=0)


def expected_answer(model: Any, ids: list[int]) -> list[int]:
    prompt = torch.tensor([ids])
    settings = {"max_new_tokens": NUM_TOKENS, "do_sample": False, "pad_token_id": 0}
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    return [int(i) for i in out[0, len(ids) :]]


def test_completions_are_those_of_the_model_and_the_library(
    client: openai.OpenAI, model: Any, library: sentencepiece.SentencePieceProcessor
) -> None:
    ids = [library.bos_id(), *library.encode(QUESTION)]
    name = client.models.list().data[0].id
    request: dict[str, Any] = {
        "model": name,
        "prompt": QUESTION,
        "temperature": 0,
        "max_tokens": NUM_TOKENS,
        "extra_body": {"ignore_eos": True},
    }
    answer = client.completions.create(**request)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)
    new = [i for i in expected_answer(model, ids) if not library.is_control(i)]
    assert _letters(answer.choices[0].text) == _letters(library.decode(new))
    chunks = list(client.completions.create(**request, stream=True))
    assert len(chunks) > 5
    assert "".join(c.choices[0].text for c in chunks if c.choices) == answer.choices[0].text


def _letters(text: str) -> str:
    """Without the signs for invalid bytes, of which the library gives one a byte."""
    return text.replace("\ufffd", "").replace("⁇", "").replace(" ", "")


def test_chat_answers_and_streams_the_same_text(
    client: openai.OpenAI, library: sentencepiece.SentencePieceProcessor
) -> None:
    request: dict[str, Any] = {
        "model": client.models.list().data[0].id,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": NUM_TOKENS,
        "extra_body": {"ignore_eos": True},
    }
    answer = client.chat.completions.create(**request)
    assert answer.usage is not None
    words = sentencepiece.SentencePieceProcessor(
        model_proto=llama_like() + b"\x1a\x02\x18\x00"  # no space goes before the text
    )
    assert answer.usage.prompt_tokens == 3 + len(words.encode(" " + QUESTION))
    chunks = client.chat.completions.create(**request, stream=True)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == answer.choices[0].message.content
    assert text


def test_a_damaged_model_is_refused_before_it_serves(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    directory(tmp_path, "tokenizer.model", b"version https://git-lfs.github.com/spec/v1\noid x")
    result = run_to_end(str(tmp_path), "--port", str(free_port()))
    assert result.returncode != 0
    assert "Git LFS pointer" in result.stderr
    assert "Traceback" not in result.stderr
