"""A directory with only a SentencePiece model: as the library itself, and as transformers."""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.text.vocabularies import (
    SPECIAL,
    directory,
    llama_like,
    sentencepiece_model,
    texts,
    texts_with_specials,
    with_pieces,
)
from tokenizers import AddedToken, models

from hearth.core.errors import TokenizerError
from hearth.engine.text.added_tokens import AddedTokenSplitter
from hearth.engine.text.detokenizer import PieceDetokenizer
from hearth.engine.text.tokenizer import Tokenizer

KINDS: dict[str, dict[str, Any]] = {
    "bpe": {"model_type": "bpe"},
    "bpe bytes identity": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
    "bpe bytes no prefix": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
    },
    "bpe no prefix, spaces removed": {"model_type": "bpe", "add_dummy_prefix": False},
    "unigram nmt_nfkc": {"model_type": "unigram"},
    "unigram bytes": {"model_type": "unigram", "byte_fallback": True},
    "unigram identity": {
        "model_type": "unigram",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
    "unigram spaces kept": {"model_type": "unigram", "remove_extra_whitespaces": False},
}


def load(content: bytes, **config: Any) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return Tokenizer.load(directory(Path(folder), "tokenizer.model", content, **config))


@functools.cache
def pair(kind: str) -> tuple[Tokenizer, sentencepiece.SentencePieceProcessor]:
    model = sentencepiece_model(**KINDS[kind])
    return load(model), sentencepiece.SentencePieceProcessor(model_proto=model)


def stream(tokenizer: Tokenizer, ids: list[int], chunk: int) -> str:
    detokenizer = tokenizer.detokenizer()
    assert isinstance(detokenizer, PieceDetokenizer)
    pieces = [detokenizer.feed(ids[i : i + chunk]) for i in range(0, len(ids), chunk)]
    return "".join(pieces) + detokenizer.flush()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(text=texts, chunk=st.integers(1, 5))
def test_ids_and_text_are_those_of_the_library(kind: str, text: str, chunk: int) -> None:
    tokenizer, library = pair(kind)
    ids = tokenizer.encode(text)
    assert ids == library.encode(text)
    assert tokenizer.least_tokens(text) <= len(ids)
    known = [i for i in ids if not library.is_unknown(i)]  # the library writes a sign for it
    assert stream(tokenizer, known, chunk) == library.decode(known)
    assert tokenizer.decode_reference(known) == library.decode(known)


def test_a_bound_on_the_number_of_tokens_is_known_where_nothing_vanishes() -> None:
    assert pair("bpe bytes identity")[0].least_tokens("x" * 10_000) > 100
    assert pair("unigram bytes")[0].least_tokens("x" * 10_000) == 0


@settings(max_examples=100)
@given(text=texts)
def test_pieces_of_equal_score_are_cut_as_the_library_cuts_them(text: str) -> None:
    """Vocabularies extended by hand; a list of merges cannot express them."""
    tokenizer, library = extended()
    assert tokenizer.encode(text) == library.encode(text)


@functools.cache
def extended() -> tuple[Tokenizer, sentencepiece.SentencePieceProcessor]:
    pieces = ["hel", "ell", "lo▁", "wor", "orl", "你好世", "世界你", "好世", "界你", "rl"]
    model = with_pieces(llama_like(), pieces, 0.0)
    return load(model), sentencepiece.SentencePieceProcessor(model_proto=model)


@functools.cache
def reference(**options: Any) -> Any:
    from transformers import LlamaTokenizer
    from transformers.convert_slow_tokenizer import generate_merges

    library = sentencepiece.SentencePieceProcessor(model_proto=llama_like())
    pieces = [library.id_to_piece(i) for i in range(library.get_piece_size())]
    plain = {
        piece: library.get_score(i)
        for i, piece in enumerate(pieces)
        if not (library.is_byte(i) or library.is_control(i) or library.is_unknown(i))
    }
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [m for m in generate_merges(vocabulary, plain) if m[0] in plain and m[1] in plain]
    control = ["[INST]", "<|im_end|>"]
    return LlamaTokenizer(
        vocab=vocabulary, merges=merges, additional_special_tokens=control, **options
    )


LLAMA: list[dict[str, Any]] = [
    {},
    {"legacy": True},
    {"legacy": False},
    {"add_bos_token": True, "add_eos_token": True, "legacy": True},
    {"add_bos_token": False, "add_eos_token": True},
    {"add_prefix_space": False},
]


@functools.cache
def ours(index: int) -> Tokenizer:
    return load(llama_like(), tokenizer_class="LlamaTokenizer", **LLAMA[index])


@pytest.mark.parametrize("index", range(len(LLAMA)))
@settings(max_examples=40)
@given(text=texts_with_specials, chunk=st.integers(1, 5))
def test_a_llama_tokenizer_does_what_transformers_does(index: int, text: str, chunk: int) -> None:
    options = {"add_bos_token": True, **LLAMA[index]}
    theirs, tokenizer = reference(**options), ours(index)
    # transformers 5 adds no space where a text begins with one; SentencePiece does, and so did
    # transformers 4.
    legacy = LLAMA[index].get("legacy") is True
    for special in ("\n", *SPECIAL) if legacy else ():
        text = text.replace(special + " ", special).replace(special + "▁", special)
    text = text.lstrip(" ▁")
    if legacy:  # every piece between special tokens begins anew
        text = text.replace(" ", "").replace("▁", "")
    ids = theirs(text)["input_ids"]
    assert tokenizer.encode(text, add_special_tokens=True) == ids
    assert stream(tokenizer, ids, chunk) == theirs.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode_all(ids) == theirs.decode(ids, skip_special_tokens=False)


def test_the_space_before_a_text_is_added_once_or_with_legacy_after_each_special_token() -> None:
    def cut(tokenizer: Tokenizer, text: str) -> str:
        return "".join(tokenizer.token_text(i) or "?" for i in tokenizer.encode(text))

    assert cut(ours(2), "a</s>a</s> a") == "▁a</s>a</s>▁a"
    assert cut(ours(1), "a</s>a</s> a") == "▁a</s>▁a</s>▁▁a"
    assert cut(ours(5), "a</s>a</s> a") == "a</s>a</s>▁a"
    assert cut(ours(0), " a") == "▁▁a"


def test_a_character_made_of_bytes_is_given_out_whole() -> None:
    tokenizer = ours(0)
    ids = tokenizer.encode("龘")
    assert [tokenizer.token_text(i) for i in ids][1:] == ["<0xE9>", "<0xBE>", "<0x98>"]
    detokenizer = tokenizer.detokenizer()
    assert [detokenizer.feed([i]) for i in ids] == ["", "", "", "龘"]
    assert tokenizer.token_bytes(ids[1]) == b"\xe9"


FLAGS = st.tuples(*[st.booleans()] * 3)


@settings(max_examples=100)
@given(
    flags=st.lists(FLAGS, min_size=4, max_size=4),
    text=st.lists(
        st.sampled_from(["<a>", "<a>b", "tok", "b", " ", "\u3000", "x", "_", "é", "\x1c"])
    ).map("".join),
)
def test_added_tokens_are_found_as_the_tokenizers_library_finds_them(
    flags: list[tuple[bool, bool, bool]], text: str
) -> None:
    tokens = {
        1 + i: AddedToken(t, single_word=f[0], lstrip=f[1], rstrip=f[2], normalized=False)
        for i, (t, f) in enumerate(zip(["<a>", "<a>b", "tok", "b"], flags, strict=True))
    }
    backend = tokenizers.Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    backend.add_tokens(list(tokens.values()))
    encoding = backend.encode(text)
    theirs = [
        (i or text[slice(*offsets)])
        for i, offsets in zip(encoding.ids, encoding.offsets, strict=True)
    ]
    split = AddedTokenSplitter(tokens).split(text)
    assert [part for pair in split for part in pair if part not in ("", None)] == theirs


def test_added_tokens_have_the_ids_and_names_that_the_files_give(tmp_path: Path) -> None:
    size = sentencepiece.SentencePieceProcessor(model_proto=llama_like()).get_piece_size()
    decoder = {
        "0": {"content": "<pad>", "special": True},  # takes over the unknown piece's id
        str(size + 7): {"content": "<think>", "special": False},
        str(size + 9): {"content": "<|end|>", "rstrip": True, "special": True},
    }
    tokenizer = load(
        llama_like(),
        added_tokens_decoder=decoder,
        eos_token="<|end|>",
        additional_special_tokens=["<|new|>"],
        unk_token=None,
    )
    assert tokenizer.eos_token_id == size + 9
    assert tokenizer.token_id("<|new|>") == size + 10
    assert tokenizer.token_text(0) == "<pad>"
    ids = tokenizer.encode("<think><|end|>  \n<|new|>")
    assert ids == [size + 7, size + 9, size + 10]
    assert tokenizer.decode(ids) == "<think>"
    directory(tmp_path, "spiece.model", llama_like(), tokenizer_class="T5Tokenizer")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<think>": size + 3}))
    named = Tokenizer.load(tmp_path)
    assert named.encode("<think>", add_special_tokens=True) == [size + 3, 2]
    assert named.eos_token_id == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"added_tokens_decoder": {"x": {"content": "a"}}}, "permitted: 0 to"),
        ({"added_tokens_decoder": {"5": {"special": True}}}, "has no text"),
        ({"added_tokens_decoder": [1]}, "not an object"),
        ({"additional_special_tokens": "abc"}, "neither a list"),
        ({"extra_special_tokens": 5}, "neither a list"),
        ({"added_tokens_decoder": {"5": {"content": "a"}, "05": {"content": "b"}}}, "two added"),
        ({"tokenizer_class": "XLMRobertaTokenizerFast"}, "numbers its tokens otherwise"),
        (
            {"tokenizer_class": "T5Tokenizer", "additional_special_tokens": ["<extra_id_0>"]},
            "numbers its tokens otherwise",
        ),
    ],
)
def test_what_cannot_be_right_is_a_clear_error(config: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        load(llama_like(), **config)


def test_a_field_of_another_kind_is_passed_over_as_the_library_does() -> None:
    number = bytes([3 << 3, 1])  # normalizer_spec as a number
    assert load(llama_like() + number).encode("dog") == load(llama_like()).encode("dog")


def test_a_model_cut_off_between_two_pieces_is_refused() -> None:
    """What is left is a valid model of fewer pieces."""
    model, end = sentencepiece_model(model_type="bpe"), 0
    for _ in range(100):
        assert model[end] == 0x0A  # a piece, shorter than 128 bytes
        end += 2 + model[end + 1]
    assert sentencepiece.SentencePieceProcessor(model_proto=model[:end]).get_piece_size() == 100
    with pytest.raises(TokenizerError, match="cut short"):
        load(model[:end])


def test_an_unknown_class_is_read_like_llamas_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ids = load(llama_like(), tokenizer_class="FoxTokenizer").encode("hello 你好")
    assert ids == ours(0).encode("hello 你好")
    assert "tokenizer_class_unknown class=FoxTokenizer" in caplog.text


def test_spaces_behind_words_are_refused() -> None:
    model = sentencepiece_model(model_type="bpe", treat_whitespace_as_suffix=True)
    with pytest.raises(TokenizerError, match="treat_whitespace_as_suffix"):
        load(model)


def test_the_unknown_token_gives_no_text_whether_or_not_it_is_named() -> None:
    for config in ({}, {"unk_token": None}):
        tokenizer = load(llama_like(), **config)
        assert tokenizer.encode("<unk>") == [0]
        assert tokenizer.decode([0]) == ""


async def test_a_long_prompt_does_not_stop_the_event_loop() -> None:
    text = "hello 你好 " * 20_000
    task = asyncio.create_task(ours(0).encode_async(text))
    turns = 0
    while not task.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert await task == ours(0).encode(text)
    assert turns > 1


def test_nothing_is_loaded_where_there_is_a_tokenizer_json() -> None:
    code = (
        "import sys; from hearth.cli.settings import BUILT_IN_DIR;"
        "from hearth.engine.text.tokenizer import Tokenizer; Tokenizer.load(BUILT_IN_DIR);"
        "print({*sys.modules} & {'sentencepiece', 'hearth.engine.text.vocabulary_file'})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_half_of_a_surrogate_pair_is_the_same_error_as_everywhere() -> None:
    with pytest.raises(TypeError):
        ours(0).encode("\ud800")
