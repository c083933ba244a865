"""Lists of tiktoken ranks give the tokens that tiktoken gives."""

from __future__ import annotations

import functools
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.text.vocabularies import byte_vocabulary, directory, rank_lines, texts

from hearth.core.errors import TokenizerError
from hearth.engine.text.tiktoken_ranks import _FAMILIES, merges_of
from hearth.engine.text.tokenizer import Tokenizer

GLM, QWEN = "ChatGLM4Tokenizer", "QWenTokenizer"
NAMES = {GLM: "tokenizer.model", QWEN: "qwen.tiktoken"}
# As tokenization_chatglm.py and tokenization_qwen.py write them.
PATTERNS = {
    GLM: r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    QWEN: r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def glm_config(size: int) -> dict[str, Any]:
    specials = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|user|>"]
    decoder = {str(size + i): {"content": t, "special": True} for i, t in enumerate(specials)}
    return {"added_tokens_decoder": decoder, "eos_token": "<|endoftext|>"}


def load(ranks: dict[bytes, int], kind: str) -> Tokenizer:
    config = glm_config(len(ranks)) if kind == GLM else {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        directory(path, NAMES[kind], rank_lines(ranks), tokenizer_class=kind, **config)
        return Tokenizer.load(path)


@functools.cache
def trained(kind: str) -> tuple[Tokenizer, tiktoken.Encoding]:
    ranks = byte_vocabulary()
    encoding = tiktoken.Encoding(
        "test", pat_str=PATTERNS[kind], mergeable_ranks=ranks, special_tokens={}
    )
    return load(ranks, kind), encoding


@pytest.mark.parametrize("kind", [GLM, QWEN])
@settings(max_examples=100)
@given(text=texts | st.text())
def test_a_text_gives_the_tokens_of_tiktoken(kind: str, text: str) -> None:
    tokenizer, encoding = trained(kind)
    text = text.replace("<", "").replace("[", "")  # no special tokens: tiktoken is not told them
    expected = unicodedata.normalize("NFC", text) if kind == QWEN else text
    ids = tokenizer.encode(text)
    assert ids == encoding.encode_ordinary(expected)
    assert tokenizer.decode(ids) == expected
    assert tokenizer.least_tokens(text) <= len(ids)


@settings(max_examples=100)
@given(data=st.data())
def test_any_order_of_ranks_merges_alike(data: st.DataObject) -> None:
    """Not only vocabularies that a trainer made: tokens that nothing can reach, late parts."""
    letters = st.text("abc", min_size=2, max_size=6)
    tokens = data.draw(st.lists(letters, unique=True, min_size=1, max_size=25))
    order = data.draw(
        st.permutations([bytes([b]) for b in range(256)] + [*map(str.encode, tokens)])
    )
    ranks = {token: rank for rank, token in enumerate(order)}
    text = data.draw(st.sampled_from(tokens) | st.text("abc", max_size=40))
    encoding = tiktoken.Encoding(
        "test", pat_str=PATTERNS[GLM], mergeable_ranks=ranks, special_tokens={}
    )
    assert load(ranks, GLM).encode(text) == encoding.encode_ordinary(text)


def test_the_patterns_are_those_of_the_models() -> None:
    assert {name: family.pattern for name, family in _FAMILIES.items()} == PATTERNS


def test_special_tokens_follow_the_ranks() -> None:
    size = len(byte_vocabulary())
    glm, qwen = trained(GLM)[0], trained(QWEN)[0]
    assert glm.encode("<|user|>", add_special_tokens=True) == [size + 2, size + 4, size + 6]
    assert glm.encode("<|user|>") == [size + 6]
    assert glm.eos_token_id == size
    chat = qwen.encode("<|im_start|>a<|extra_204|>", add_special_tokens=True)
    assert (chat[0], chat[-1], qwen.eos_token_id) == (size + 1, size + 207, size)
    assert qwen.decode(chat) == "a"


def test_every_way_to_cut_a_token_is_a_merge() -> None:
    assert merges_of({"a": 0, "b": 1, "ab": 2, "aba": 3, "ba": 4}) == [
        ("a", "b"),
        ("a", "ba"),
        ("ab", "a"),
        ("b", "a"),
    ]


def lines(change: dict[int, bytes]) -> bytes:
    content = rank_lines({bytes([b]): b for b in range(256)}).splitlines()
    for number, line in change.items():
        content[number] = line
    return b"\n".join(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines({7: b"!! 7"}), "line 8 is not"),
        (lines({7: b"Bw=="}), "line 8 is not"),
        (lines({7: b"Bw== 7 7"}), "line 8 is not"),
        (lines({7: b"Bw== x"}), "line 8 is not"),
        (lines({7: b"Bg== 7"}), "occurs twice"),
        (lines({7: b"Bw== 8"}), "occurs twice"),
        (lines({7: b""}), "1 of the 256 bytes"),
        (lines({7: b"Bw== 99999999999"}), "ranks go from"),
        (lines({})[:1000], "is damaged"),
    ],
)
def test_a_damaged_list_is_a_clear_error(tmp_path: Path, content: bytes, message: str) -> None:
    directory(tmp_path, "tokenizer.model", content, tokenizer_class=GLM)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(tmp_path)


def test_an_unknown_class_is_refused_with_what_to_do(tmp_path: Path) -> None:
    directory(tmp_path, "tiktoken.model", lines({}), tokenizer_class="TikTokenTokenizer")
    with pytest.raises(TokenizerError, match="TikTokenTokenizer") as caught:
        Tokenizer.load(tmp_path)
    assert "tokenizer.json" in str(caught.value.hint)


def test_an_added_token_cannot_take_the_id_of_another(tmp_path: Path) -> None:
    decoder = {"5": {"content": "<x>"}}
    directory(tmp_path, "a.tiktoken", lines({}), tokenizer_class=GLM, added_tokens_decoder=decoder)
    with pytest.raises(TokenizerError, match="the id 5 of '<x>'"):
        Tokenizer.load(tmp_path)
