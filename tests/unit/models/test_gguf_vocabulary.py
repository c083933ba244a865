"""Tokenizers from GGUF metadata encode as those that they were made from; the view around them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from gguf import GGMLQuantizationType as Type
from tests.support.foreign import LLAMA
from tests.support.gguf_models import Vocabulary, save_gguf
from tests.support.hf_models import build_model
from tests.unit.text.vocabularies import llama_like
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from hearth.cli.described import described
from hearth.cli.settings import find_model, served_names
from hearth.core.errors import HearthError, ModelNotFoundError, TokenizerError
from hearth.engine.text.chat_template import load_chat_template
from hearth.engine.text.tokenizer import Tokenizer
from hearth.models.gguf import view as views
from hearth.models.gguf.file import read_gguf
from hearth.models.gguf.vocabulary import vocabulary_files
from hearth.models.weight_identity import identify

TEXTS = [
    "Hello world, it's 12345 o'clock!",
    "  leading and   many spaces\n\n\tand tabs\r\n",
    "größer als 7 größere ÄPFEL, naïve café",
    "你好，世界 1234567",
    "emoji 👩‍👩‍👧 and e\u0301 composed",
    "<|im_start|>user\nWhat?<|im_end|><tool> x</tool>",
    "I'LL don't WE'RE __init__(self): return x**2 // 3",
    "",
]
CUTS = {
    "qwen2": PRETOKENIZE_REGEX,
    "llama-bpe": TikTokenConverter.__init__.__defaults__[1],  # type: ignore[index]
    "gpt-2": None,
}
ADDED = ["<|end|>", "<|im_start|>", "<|im_end|>"]


def trained(pre: str) -> tokenizers.Tokenizer:
    """Byte-level BPE as models with this cut have it."""
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    pattern = CUTS[pre]
    if pattern is None:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=ADDED,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 20, trainer)
    backend.add_tokens(["<tool>"])
    return backend


def vocabulary_of(backend: tokenizers.Tokenizer, pre: str) -> Vocabulary:
    """What llama.cpp's converter writes of it."""
    state = json.loads(backend.to_str())
    by_id = {index: token for token, index in backend.get_vocab(with_added_tokens=True).items()}
    tokens = [by_id[index] for index in range(len(by_id))]
    types = [1] * len(tokens)
    for added in state["added_tokens"]:
        types[added["id"]] = 3 if added["special"] else 4
    merges = [" ".join(pair) for pair in state["model"]["merges"]]
    return Vocabulary("gpt2", pre, [*tokens, "[PAD1]"], [*types, 5], merges=merges)


def file_with(directory: Path, vocabulary: Vocabulary, name: str = "m.gguf") -> Path:
    path = directory / name
    save_gguf(build_model(LLAMA), path, lambda _: Type.F16, vocabulary)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hearth" / "gguf"


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("pre", CUTS)
def test_byte_level_vocabularies_encode_as_their_original(tmp_path: Path, pre: str) -> None:
    backend = trained(pre)
    path = file_with(tmp_path, vocabulary_of(backend, pre))
    found = Tokenizer.load(find_model(str(path)))
    for text in TEXTS:
        ids = backend.encode(text, add_special_tokens=False).ids
        assert found.encode(text) == ids, text
    assert found.config.special_tokens["eos_token"] == "<|im_end|>"
    assert found.config.chat_template == "{{ messages }}"
    assert load_chat_template(find_model(str(path)), found.config) is not None


@pytest.mark.usefixtures("cache")
def test_sentencepiece_vocabularies_encode_as_their_original(tmp_path: Path) -> None:
    data = llama_like()
    library = sentencepiece.SentencePieceProcessor(model_proto=data)
    count = library.get_piece_size()
    types = [
        2 if library.is_unknown(i) else 3 if library.is_control(i) else 6 if library.is_byte(i)
        else 1 for i in range(count)
    ]  # fmt: skip
    vocabulary = Vocabulary(
        "llama",
        "default",
        [library.id_to_piece(i) for i in range(count)],
        types,
        scores=[library.get_score(i) for i in range(count)],
    )
    found = Tokenizer.load(find_model(str(file_with(tmp_path, vocabulary))))
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "tokenizer.model").write_bytes(data)
    original = Tokenizer.load(tmp_path / "original")
    for text in [*TEXTS, "▁ odd ▁▁", " x", "[INST] y"]:
        assert found.encode(text) == original.encode(text), text
        if "<" not in text and "[" not in text:
            assert found.encode(text) == library.encode(text), text
    assert found.encode("a", add_special_tokens=True)[0] == library.bos_id()


def change(vocabulary: Vocabulary, **values: Any) -> Vocabulary:
    return Vocabulary(**{**{f: getattr(vocabulary, f) for f in vocabulary.__dataclass_fields__},
                         **values})  # fmt: skip


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"pre": "never-heard-of"}, "pre is 'never-heard-of'; permitted: llama-bpe"),
        ({"model": "bert"}, "model is 'bert'"),
        ({"types": [1]}, "1 token types for"),
        ({"merges": ["nospace"]}, "names no two tokens"),
        ({"merges": ["zz qq"]}, "names no two tokens"),
        ({"model": "llama", "scores": [0.0]}, "1 scores"),
        ({"model": "llama"}, "scores is no list"),
    ],
)
def test_a_vocabulary_that_cannot_be_read_exactly_is_refused(
    tmp_path: Path, values: dict[str, Any], says: str
) -> None:
    vocabulary = change(vocabulary_of(trained("qwen2"), "qwen2"), **values)
    with pytest.raises(TokenizerError) as caught:
        vocabulary_files(read_gguf(file_with(tmp_path, vocabulary)))
    assert says in caught.value.message
    assert "beside the GGUF file" in str(caught.value)


def test_a_tokenizer_beside_the_file_comes_first(tmp_path: Path, cache: Path) -> None:
    vocabulary = change(vocabulary_of(trained("qwen2"), "qwen2"), pre="never-heard-of")
    path = file_with(tmp_path, vocabulary)
    with pytest.raises(TokenizerError):
        find_model(str(path))
    assert not list(cache.glob("*"))
    backend = trained("qwen2")
    backend.save(str(tmp_path / "tokenizer.json"))
    found = Tokenizer.load(find_model(str(path)))
    assert found.encode(TEXTS[0]) == backend.encode(TEXTS[0]).ids


def test_the_view_is_made_once_and_anew_for_another_file(tmp_path: Path, cache: Path) -> None:
    vocabulary = vocabulary_of(trained("qwen2"), "qwen2")
    path = file_with(tmp_path, vocabulary)
    first = find_model(str(path))
    stamp = (first / "config.json").stat().st_mtime_ns
    assert find_model(str(path)) == first
    assert (first / "config.json").stat().st_mtime_ns == stamp
    assert served_names(str(path), first, None) == ("m",)
    before = identify([first / "model.gguf"])
    path.unlink()
    file_with(tmp_path, vocabulary)
    second = find_model(str(path))
    assert second != first
    assert [p.name for p in cache.iterdir()] == [second.name]
    assert identify([second / "model.gguf"]) != before


@pytest.mark.usefixtures("cache")
def test_a_directory_with_one_file_means_that_file(tmp_path: Path) -> None:
    directory = tmp_path / "models"
    directory.mkdir()
    vocabulary = vocabulary_of(trained("qwen2"), "qwen2")
    file_with(directory, vocabulary)
    file_with(directory, vocabulary, "mmproj-m.gguf")
    assert (find_model(str(directory)) / "model.gguf").readlink() == directory / "m.gguf"
    with described(str(directory / "m.gguf"), "auto") as found:
        checkpoint = found.read_weights()
    assert checkpoint is not None
    assert "model.embed_tokens.weight" in checkpoint.tensors
    file_with(directory, vocabulary, "n.gguf")
    with pytest.raises(ModelNotFoundError, match="holds 2 GGUF files"):
        find_model(str(directory))


def test_without_a_place_to_keep_it_the_view_ends_with_the_process(tmp_path: Path) -> None:
    path = file_with(tmp_path, vocabulary_of(trained("qwen2"), "qwen2"))
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a directory should be")
    for environment in ({}, {"HOME": "/"} | {"XDG_CACHE_HOME": str(blocked)}):
        view = views.view_of(path, environment)
        assert (view / "tokenizer.json").is_file()
        assert tmp_path not in view.parents


def test_a_damaged_file_is_an_error_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    path = file_with(tmp_path, vocabulary_of(trained("qwen2"), "qwen2"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(HearthError, match="truncated"):
        find_model(str(path))
    assert not cache.exists()
