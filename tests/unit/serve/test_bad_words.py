"""Bad words as tokens: at the beginning of a text, after a space, and in the middle of a word."""

from __future__ import annotations

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from hearth.engine.text.tokenizer import Tokenizer
from hearth.engine.text.tokenizer_config import TokenizerConfig
from hearth.serve.sampling import bad_word_tokens

VOCABULARY = {
    text: i for i, text in enumerate(["<unk>", "▁", "cat", "▁cat", "▁▁", "<0x0A>", "b", "ob", "▁b"])
}


def _llama_2() -> Tokenizer:
    """Marks a space before every text, as Llama 2's tokenizer does; a newline is a byte."""
    parts = [("▁", "▁"), ("c", "a"), ("ca", "t"), ("▁", "cat"), ("o", "b"), ("▁", "b")]
    vocabulary = dict(VOCABULARY)
    for text in ("c", "a", "t", "ca", "o"):
        vocabulary[text] = len(vocabulary)
    backend = Backend(models.BPE(vocabulary, parts, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return Tokenizer(backend, TokenizerConfig())


def test_a_tokenizer_that_marks_every_beginning_forbids_the_unmarked_form_too() -> None:
    found = bad_word_tokens(_llama_2(), ["cat", " cat"])
    assert set(found) == {(VOCABULARY["▁cat"],), (VOCABULARY["cat"],)}


def test_a_byte_level_tokenizer_has_two_forms() -> None:
    chars = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: i for i, text in enumerate([*chars, "at", "cat", "Ġcat"])}
    backend = Backend(models.BPE(vocabulary, [("a", "t"), ("c", "at"), ("Ġ", "cat")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = Tokenizer(backend, TokenizerConfig())
    found = bad_word_tokens(tokenizer, ["cat"])
    assert found == ((vocabulary["cat"],), (vocabulary["Ġcat"],))
