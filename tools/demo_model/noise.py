"""The surface of a question as people type it: politeness, case, punctuation, typing errors.

Owns only the form; a noisy question always asks the same as the clean one. Numbers, operators
and names that begin with a dash or a slash are never damaged.
"""

import random
import re

from tools.demo_model.phrasing import draw_weighted, load_frames
from tools.demo_model.words import draw_word

WRAP_SHARE = 0.22
TYPO_SHARE = 0.07
DROP_ARTICLE_SHARE = 0.06
DISTRACT_SHARE = 0.1
MAX_DISTRACTIONS = 2
TELEGRAM_SHARE = 0.06
TELEGRAM_MIN_BLANKS = 5
LOWER_SHARE = 0.3
UPPER_SHARE = 0.02
CAPITAL_SHARE = 0.4
SPACING_SHARE = 0.35

_ARTICLE = re.compile(r"\b(?:the|a|an) ")
# Words that carry none of a question's meaning; people who type keywords leave them out.
_FILLER = re.compile(
    r"\b(?:how|do|does|can|could|should|would|what|which|is|are|the|a|an|I|you|we|to|of|for|my|it|me"
    r"|tell|please|want|need|there|this) ",
    re.IGNORECASE,
)
_PLAIN_WORD = re.compile(r"(?<![\w/<>-])[a-z]{4,}(?![\w/-])")
_CJK_THEN_ASCII = re.compile(r"([\u4e00-\u9fff])([A-Za-z0-9/-])")
_ASCII_THEN_CJK = re.compile(r"([A-Za-z0-9])([\u4e00-\u9fff])")
_ENDINGS = {
    "en": (("?", 0.55), ("", 0.36), (".", 0.04), (" ?", 0.02), ("??", 0.015), ("!", 0.015)),
    "zh": (
        ("\uff1f", 0.4),
        ("", 0.4),
        ("?", 0.1),
        ("\u3002", 0.05),
        ("\uff01", 0.02),
        ("??", 0.03),
    ),
}


def roughen(question: str, language: str, rng: random.Random) -> str:
    """The question with a random surface."""
    if language == "en" and "-" not in question and not re.search(r"\d", question):
        question = _distract(question, rng)
    if rng.random() < WRAP_SHARE:
        question = _wrap(question, language, rng)
    if language == "en":
        question = _english(question, rng)
    elif rng.random() < SPACING_SHARE:
        question = _ASCII_THEN_CJK.sub(r"\1 \2", _CJK_THEN_ASCII.sub(r"\1 \2", question))
    return " ".join(question.split()) + _ending(question, language, rng)


def _distract(question: str, rng: random.Random) -> str:
    """Now and then everyday words between the others: unknown words must not change the topic."""
    words = question.split()
    if len(words) >= TELEGRAM_MIN_BLANKS and rng.random() < DISTRACT_SHARE:
        for _ in range(rng.randint(1, MAX_DISTRACTIONS)):
            kind = rng.choice(("noun", "verb", "adjective", "place"))
            words.insert(rng.randrange(len(words) + 1), draw_word(kind, rng))
    return " ".join(words)


def _wrap(question: str, language: str, rng: random.Random) -> str:
    frames = load_frames().frames
    if rng.random() < 0.6:
        question = draw_weighted(frames[language, "before"], rng) + question
    if rng.random() < 0.5:
        question += draw_weighted(frames[language, "after"], rng)
    return question


def _english(question: str, rng: random.Random) -> str:
    if rng.random() < DROP_ARTICLE_SHARE:
        question = _ARTICLE.sub("", question)
    long = question.count(" ") >= TELEGRAM_MIN_BLANKS and not re.search(r"\d", question)
    if long and rng.random() < TELEGRAM_SHARE:
        question = _FILLER.sub("", question)
    if rng.random() < TYPO_SHARE:
        question = _misspell(question, rng)
    draw = rng.random()
    if draw < LOWER_SHARE:
        return question.lower()
    if draw < LOWER_SHARE + UPPER_SHARE:
        return question.upper()
    if draw < LOWER_SHARE + UPPER_SHARE + CAPITAL_SHARE:
        return question[:1].upper() + question[1:]
    return question


def _misspell(question: str, rng: random.Random) -> str:
    words = list(_PLAIN_WORD.finditer(question))
    if not words:
        return question
    word = rng.choice(words)
    text = word.group()
    at = rng.randrange(1, len(text) - 1)
    kind = rng.randrange(3)
    if kind == 0:
        text = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    elif kind == 1:
        text = text[:at] + text[at + 1 :]
    else:
        text = text[:at] + text[at] + text[at:]
    return question[: word.start()] + text + question[word.end() :]


def _ending(question: str, language: str, rng: random.Random) -> str:
    if question.rstrip()[-1:] in "?.!=\uff1f\u3002\uff01":
        return ""
    endings, weights = zip(*_ENDINGS[language], strict=True)
    return str(rng.choices(endings, weights=weights)[0])
