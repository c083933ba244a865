"""A SentencePiece model (tokenizer.model, spiece.model) as a tokenizer: Unigram or BPE.

The `sentencepiece` library itself cuts the text. Turning the model into one of `tokenizers` is
not exact: its normalizer applies the character map otherwise (it loses the second mark of a
letter with two, and does not join halfwidth kana with theirs), and its BPE cannot express pieces
of equal score, which vocabularies extended by hand have by the ten thousand. What is left for
`tokenizers` is what it does exactly: ids, texts of ids, and decoding, through a word-level model
that never cuts anything.

Around the library's own work, as transformers has it:

- added and special tokens written in a text are cut out first;
- a space goes before the text where the model's `add_dummy_prefix` says so, or
  `add_prefix_space` if the configuration has it; before the text only, or with `legacy: true`
  before every piece between added tokens. It is added to a text that begins with a space too;
- `add_bos_token` and `add_eos_token`; where they are missing, what the tokenizer's class does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models

from hearth.core.errors import TokenizerError
from hearth.engine.text import added_tokens
from hearth.engine.text.tokenizer_config import config_of

logger = logging.getLogger("hearth.engine")

SPACE_MARK = "▁"
CONVERT_HINT = (
    "convert it once, where transformers is installed: "
    "transformers.AutoTokenizer.from_pretrained(dir).save_pretrained(dir)"
)
# Their classes give pieces other ids than the model file does.
_RENUMBERING_CLASSES = frozenset(
    {
        "BarthezTokenizer",
        "CamembertTokenizer",
        "ChatGLMTokenizer",
        "M2M100Tokenizer",
        "MBart50Tokenizer",
        "MBartTokenizer",
        "NllbTokenizer",
        "PegasusTokenizer",
        "PLBartTokenizer",
        "SeamlessM4TTokenizer",
        "Speech2TextTokenizer",
        "XGLMTokenizer",
        "XLMRobertaTokenizer",
    }
)
# Theirs are the model file's; with any other class the user is told that this is an assumption.
_DIRECT_CLASSES = frozenset(
    {
        "",  # Llama's, in a directory without tokenizer_config.json
        "BaichuanTokenizer",
        "CodeLlamaTokenizer",
        "GemmaTokenizer",
        "InternLM2Tokenizer",
        "InternLMTokenizer",
        "LlamaTokenizer",
        "PreTrainedTokenizer",
        "T5Tokenizer",
        "YiTokenizer",
    }
)
_ALL_SPACES = 2**31  # more than an answer has
_EOS_BY_DEFAULT = frozenset({"T5Tokenizer"})

# Field numbers of sentencepiece_model.proto (google/sentencepiece).
_TRAINER_SPEC, _NORMALIZER_SPEC, _DENORMALIZER_SPEC = 2, 3, 5
_CHARSMAP, _ADD_DUMMY_PREFIX, _REMOVE_EXTRA_WHITESPACES = 2, 3, 4
_TREAT_WHITESPACE_AS_SUFFIX = 24


@dataclass(frozen=True, slots=True)
class _Normalizer:
    """What the model file says about the text before it is cut."""

    has_charsmap: bool
    adds_prefix: bool
    removes_extra_spaces: bool


class SentencePieceEncoder:
    """Text to ids; safe to use from several threads."""

    def __init__(
        self,
        splitter: added_tokens.AddedTokenSplitter,
        first: sentencepiece.SentencePieceProcessor,
        later: sentencepiece.SentencePieceProcessor,
        *,
        around: tuple[list[int], list[int]],
        longest_chars: int | None,
    ) -> None:
        self._splitter = splitter
        self._first, self._later = first, later  # the beginning of a text, and what follows
        self._before, self._after = around
        self.longest_chars = longest_chars  # see text.length

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of `text`.

        Raises:
            TypeError: the text holds half of a surrogate pair, as `tokenizers` has it.
        """
        ids = list(self._before) if add_special_tokens else []
        processor = self._first
        try:
            for piece, token_id in self._splitter.split(text):
                if piece:
                    ids += processor.encode(piece)
                if token_id is not None:
                    ids.append(token_id)
                processor = self._later
        except RuntimeError as error:  # raised by the binding where a str has no UTF-8
            raise TypeError(f"the text is not valid Unicode: {error}") from error
        return ids + self._after if add_special_tokens else ids


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """A loaded model: `backend` decodes and knows the vocabulary, `encoder` cuts text."""

    backend: tokenizers.Tokenizer
    encoder: SentencePieceEncoder
    special_tokens: Mapping[str, str]  # named by the model itself or the settings


def load(
    data: bytes, settings: Mapping[str, Any], added: Mapping[str, Any], path: Path
) -> SentencePieceModel:
    """Builds the tokenizer from the file's content and the JSON files beside it.

    Raises:
        TokenizerError: the content is no SentencePiece model, or one that cannot be served exactly.
    """
    kind = str(settings.get("tokenizer_class") or "").removesuffix("Fast")
    _refuse_other_numbers(kind, settings, path)
    model = _processor(data, path)
    normalizer = _normalizer_of(data, path)
    special = _special_tokens(model, settings)
    vocabulary = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    tokens = _added(model, {**special, **settings}, added, vocabulary)
    prefix = settings.get("add_prefix_space")
    adds_prefix = prefix if isinstance(prefix, bool) else normalizer.adds_prefix
    first, later = _processors(data, path, adds_prefix, settings.get("legacy") is True)
    strips = _ALL_SPACES if normalizer.removes_extra_spaces else int(adds_prefix)
    backend = _backend(model, vocabulary, tokens, strips)
    encoder = SentencePieceEncoder(
        added_tokens.AddedTokenSplitter(tokens),
        first,
        later,
        around=_around(kind, settings, special, backend.token_to_id),
        longest_chars=_longest_chars(model, normalizer, vocabulary, tokens),
    )
    return SentencePieceModel(backend, encoder, special)


def _refuse_other_numbers(kind: str, settings: Mapping[str, Any], path: Path) -> None:
    # T5's sentinels go from the highest id down; added_tokens_decoder, where it is, says so.
    sentinels = str(settings.get("additional_special_tokens")).count("<extra_id_")
    counts_down = kind == "T5Tokenizer" and sentinels and "added_tokens_decoder" not in settings
    if kind in _RENUMBERING_CLASSES or counts_down:
        raise TokenizerError(
            f"{path}: {kind} numbers its tokens otherwise than the SentencePiece model does",
            hint=CONVERT_HINT,
        )
    if kind not in _DIRECT_CLASSES:
        logger.warning(
            "tokenizer_class_unknown class=%s file=%s: token ids are taken from the model file and "
            "special tokens are added as Llama's tokenizer adds them; if answers make no sense, %s",
            kind,
            path,
            CONVERT_HINT,
        )


def _processor(data: bytes, path: Path) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(data)
    except (RuntimeError, OSError, ValueError) as error:
        raise TokenizerError(
            f"{path} is neither a SentencePiece model nor a list of tiktoken ranks, or is damaged",
            hint="download the file again, and compare its size with the one at its source",
        ) from error
    return processor


def _processors(
    data: bytes, path: Path, adds_prefix: bool, is_legacy: bool
) -> tuple[sentencepiece.SentencePieceProcessor, sentencepiece.SentencePieceProcessor]:
    """For the beginning of a text and for what follows an added token."""
    # Protocol buffers that stand one after the other are merged, the later value counts: this
    # overrides normalizer_spec.add_dummy_prefix and leaves the rest as it is.
    override = bytes([_NORMALIZER_SPEC << 3 | 2, 2, _ADD_DUMMY_PREFIX << 3])
    first = _processor(data + override + bytes([adds_prefix]), path)
    if not adds_prefix or is_legacy:
        return first, first
    return first, _processor(data + override + b"\0", path)


def _special_tokens(
    model: sentencepiece.SentencePieceProcessor, settings: Mapping[str, Any]
) -> dict[str, str]:
    own = {"bos_token": model.bos_id(), "eos_token": model.eos_id(), "unk_token": model.unk_id()}
    named = {name: model.id_to_piece(i) for name, i in own.items() if i >= 0}
    return dict(config_of({**named, **settings}).special_tokens)  # null there: there is none


def _added(
    model: sentencepiece.SentencePieceProcessor,
    settings: Mapping[str, Any],
    added: Mapping[str, Any],
    vocabulary: Mapping[str, int],
) -> dict[int, AddedToken]:
    """Control pieces, the unknown piece and what the JSON files add.

    Symbols that the model's author defined are no added tokens: the library finds them itself.
    """
    own = {
        i: AddedToken(text, normalized=False, special=True)
        for text, i in vocabulary.items()
        if model.is_control(i) or model.is_unknown(i)
    }
    return own | added_tokens.collect(settings, added, vocabulary)


def _backend(
    model: sentencepiece.SentencePieceProcessor,
    vocabulary: Mapping[str, int],
    tokens: Mapping[int, AddedToken],
    strips: int,
) -> tokenizers.Tokenizer:
    """Ids, texts and decoding, up to `strips` spaces off the start; it must not encode."""
    has_bytes = any(map(model.is_byte, range(model.get_piece_size())))
    # An added token may take over the id of a piece, under a name of its own.
    ids = {text: i for text, i in vocabulary.items() if i not in tokens}
    ids |= {token.content: i for i, token in tokens.items()}
    backend = tokenizers.Tokenizer(models.WordLevel(ids))
    for token_id in sorted(tokens):
        backend.add_tokens([tokens[token_id]])
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE_MARK, " ")]
    steps += [decoders.ByteFallback()] if has_bytes else []
    steps += [decoders.Fuse()]
    steps += [decoders.Strip(" ", strips, 0)] if strips else []
    backend.decoder = decoders.Sequence(steps)
    return backend


def _around(
    kind: str,
    settings: Mapping[str, Any],
    special: Mapping[str, str],
    token_id: Callable[[str], int | None],
) -> tuple[list[int], list[int]]:
    """What goes before and after a text whose special tokens are wanted."""
    ends = kind in _EOS_BY_DEFAULT
    wanted = {
        "bos_token": _flag(settings, "add_bos_token", default=not ends),
        "eos_token": _flag(settings, "add_eos_token", default=ends),
    }
    ids: list[list[int]] = []
    for name, is_wanted in wanted.items():
        found = token_id(special[name]) if is_wanted and name in special else None
        ids.append([] if found is None else [found])
    return ids[0], ids[1]


def _flag(settings: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = settings.get(name)
    return value if isinstance(value, bool) else default


def _longest_chars(
    model: sentencepiece.SentencePieceProcessor,
    normalizer: _Normalizer,
    vocabulary: Mapping[str, int],
    tokens: Mapping[int, AddedToken],
) -> int | None:
    """No token stands for more characters; None where text can vanish or shrink."""
    is_certain = (
        not normalizer.has_charsmap
        and not normalizer.removes_extra_spaces
        and any(map(model.is_byte, range(model.get_piece_size())))  # an unknown run is one token
        and not any(token.lstrip or token.rstrip for token in tokens.values())
    )
    texts = [*vocabulary, *(token.content for token in tokens.values())]
    return max(map(len, texts)) if is_certain else None


def _normalizer_of(data: bytes, path: Path) -> _Normalizer:
    """Reads the settings that the library does not tell.

    Raises:
        TokenizerError: the file is cut short, or needs a decoding that cannot be streamed exactly.
    """
    specs: dict[int, dict[int, int | memoryview]] = {}
    for number, value in _fields(memoryview(data)):
        is_spec = number in (_TRAINER_SPEC, _NORMALIZER_SPEC, _DENORMALIZER_SPEC)
        if is_spec and isinstance(value, memoryview):  # the library passes over another kind too
            specs.setdefault(number, {}).update(_fields(value))
    if _NORMALIZER_SPEC not in specs:  # it stands behind the pieces; the rest parses without it
        raise TokenizerError(
            f"{path} is cut short: it has no normalizer_spec", hint="download the file again"
        )
    denormalizer = specs.get(_DENORMALIZER_SPEC, {})
    if specs.get(_TRAINER_SPEC, {}).get(_TREAT_WHITESPACE_AS_SUFFIX) or denormalizer.get(_CHARSMAP):
        raise TokenizerError(
            f"{path} puts spaces behind words or rewrites its answers (treat_whitespace_as_suffix, "
            "denormalizer_spec), which cannot be streamed",
            hint=CONVERT_HINT,
        )
    normalizer = specs.get(_NORMALIZER_SPEC, {})
    return _Normalizer(
        has_charsmap=bool(normalizer.get(_CHARSMAP)),
        adds_prefix=bool(normalizer.get(_ADD_DUMMY_PREFIX, True)),
        removes_extra_spaces=bool(normalizer.get(_REMOVE_EXTRA_WHITESPACES, True)),
    )


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values of a protocol buffer that the library has accepted already."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        value: int | memoryview
        if kind == 0:
            value, position = _varint(data, position)
        else:
            size = {1: 8, 5: 4}.get(kind)
            if size is None:
                size, position = _varint(data, position)
            value, position = data[position : position + size], position + size
        yield key >> 3, value


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """A variable-length number and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
