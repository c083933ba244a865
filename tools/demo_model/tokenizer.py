"""The tokenizer of the text model: byte-level BPE with single digits and GLM's special tokens.

Owns the vocabulary's size, the special tokens and how a conversation becomes token ids. The ids
made here for training are those that the chat template gives when serving: special tokens cut the
text, and each piece between them begins with a line feed, which the pre-tokenizer keeps apart.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tools.demo_model.corpus import Conversation
from tools.demo_model.phrasing import DATA_DIR

VOCABULARY_SIZE = 3072
END_OF_TEXT = "<|endoftext|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
SYSTEM = "<|system|>"
OBSERVATION = "<|observation|>"
SPECIAL_TOKENS = (END_OF_TEXT, "[gMASK]", "<sop>", SYSTEM, USER, ASSISTANT, OBSERVATION)
CHAT_TEMPLATE_PATH = DATA_DIR / "chat_template.jinja"
# Not counted in the loss: questions, role marks, padding. The value is torch's ignore_index.
IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a conversation and, of the same length, the labels that the loss counts."""

    ids: list[int]
    labels: list[int]


def train_tokenizer(conversations: Iterable[Conversation]) -> Tokenizer:
    """A tokenizer trained on the text of the conversations."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(text, special=True) for text in SPECIAL_TOKENS],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(conversations), trainer)
    return tokenizer


def _texts(conversations: Iterable[Conversation]) -> Iterator[str]:
    yield from (DATA_DIR / "general_text.txt").read_text(encoding="utf-8").splitlines()
    for conversation in conversations:
        yield conversation.system
        for turn in conversation.turns:
            yield turn.question
            yield turn.answer


class Encoder:
    """Turns conversations into token ids and labels."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = {text: token_id(tokenizer, text) for text in SPECIAL_TOKENS}
        self._start = [self._special["[gMASK]"], self._special["<sop>"]]

    def encode(self, conversation: Conversation) -> Encoded:
        """The ids of the whole conversation; only answers and the mark after each have labels."""
        ids = list(self._start)
        if conversation.system:
            ids += [self._special[SYSTEM], *self._ids("\n" + conversation.system)]
        labels = [IGNORED_LABEL] * len(ids)
        for turn in conversation.turns:
            question = [self._special[USER], *self._ids("\n" + turn.question)]
            question += [self._special[ASSISTANT], *self._ids("\n")]
            # The label of the mark after an answer, <|user|>, is what ends generation. In all
            # turns but the first it is the mark that opens the next turn.
            question_labels = [IGNORED_LABEL] * len(question)
            if len(labels) > len(self._start) and labels[-1] != IGNORED_LABEL:
                question_labels[0] = self._special[USER]
            answer = self._ids(turn.answer)
            ids += question + answer
            labels += question_labels + answer
        return Encoded([*ids, self._special[USER]], [*labels, self._special[USER]])

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that must exist; raises KeyError where it does not."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise KeyError(token)
    return found
