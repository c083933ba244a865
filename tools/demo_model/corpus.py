"""The training conversations: facts, small talk, arithmetic and JSON in random order.

Owns the mixture and the exclusion of held-out questions. A corpus is a pure function of its seed:
the same seed and count give the same conversations on every machine.
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.demo_model.facts import CHAT_FILES, FACT_FILES, draw_question, load_facts
from tools.demo_model.noise import roughen
from tools.demo_model.tasks import draw_arithmetic, draw_capital, draw_json_result
from tools.demo_model.words import draw_strange_question

HELD_OUT_PATH = Path("tests/data/demo_questions.jsonl")
DEVELOPMENT_PATH = Path(__file__).parent / "data" / "development_questions.jsonl"

KINDS = ("fact", "chat", "arithmetic", "capital", "result")
KIND_WEIGHTS = (0.60, 0.09, 0.18, 0.06, 0.07)
# Of the small talk: unrelated questions put together from everyday words.
STRANGE_SHARE = 0.3
DRILL = (0.0, 0.0, 0.6, 0.0, 0.4)
CHINESE_SHARE = 0.45
# Sums need the most examples and are short: some conversations are nothing but arithmetic.
DRILL_SHARE = 0.12
NUM_DRILL_TURNS = 4
NUM_TURNS = (1, 2, 3)
NUM_TURNS_WEIGHTS = (0.6, 0.25, 0.15)
SYSTEM_SHARE = 0.2
SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are hearth's assistant.",
    "Answer briefly.",
    "You are a friendly chatbot. Be concise.",
    "Be short and correct.",
    "You answer questions about hearth.",
    "You are an AI assistant that helps people find information.",
    "你是一个有用的助手。",
    "请简短回答。",
    "你是hearth的助手。",
    "你是一个乐于助人的人工智能助手。",
)


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and the answer to it."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """An optional system message (empty = none) and one or more turns."""

    system: str
    turns: tuple[Turn, ...]


def normalise(question: str) -> str:
    """The question without case, blanks and punctuation; signs between numbers are kept."""
    text = re.sub(r"-(?!\s*\d)", "", question.casefold())
    return re.sub(r"[^\w+*×-]|_", "", text)


def read_questions(path: Path) -> list[dict[str, object]]:
    """The questions of a JSON-lines file; an absent file has none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def excluded_questions() -> frozenset[str]:
    """Every held-out and development question, normalised."""
    rows = read_questions(HELD_OUT_PATH) + read_questions(DEVELOPMENT_PATH)
    return frozenset(normalise(str(row["question"])) for row in rows)


def draw_conversations(seed: int, count: int) -> Iterator[Conversation]:
    """`count` conversations; none holds a held-out or development question."""
    rng = random.Random(seed)
    excluded = excluded_questions()
    for _ in range(count):
        language = _draw_language(rng)
        if rng.random() < DRILL_SHARE:
            drill = [_draw_turn(DRILL, language, excluded, rng) for _ in range(NUM_DRILL_TURNS)]
            yield Conversation("", tuple(drill))
            continue
        num_turns = rng.choices(NUM_TURNS, weights=NUM_TURNS_WEIGHTS)[0]
        turns = []
        for _ in range(num_turns):
            if rng.random() < 0.1:
                language = _draw_language(rng)
            turns.append(_draw_turn(KIND_WEIGHTS, language, excluded, rng))
        system = rng.choice(SYSTEM_MESSAGES) if rng.random() < SYSTEM_SHARE else ""
        yield Conversation(system, tuple(turns))


def _draw_language(rng: random.Random) -> str:
    return "zh" if rng.random() < CHINESE_SHARE else "en"


def _draw_turn(
    kind_weights: tuple[float, ...], language: str, excluded: frozenset[str], rng: random.Random
) -> Turn:
    while True:
        kind = rng.choices(KINDS, weights=kind_weights)[0]
        question, answer = _draw_pair(kind, language, rng)
        question = roughen(question, language, rng)
        if normalise(question) not in excluded:
            return Turn(question, answer)


def _draw_pair(kind: str, language: str, rng: random.Random) -> tuple[str, str]:
    if kind == "arithmetic":
        return draw_arithmetic(language, rng)
    if kind == "capital":
        return draw_capital(language, rng)
    if kind == "result":
        return draw_json_result(language, rng)
    facts = load_facts(FACT_FILES if kind == "fact" else CHAT_FILES)
    if kind == "chat" and rng.random() < STRANGE_SHARE:
        return draw_strange_question(language, rng), load_facts(CHAT_FILES)[-1].answers[language]
    # Of the small talk, the unrelated questions need the most variety: half of the draws.
    fact = facts[-1] if kind == "chat" and rng.random() < 0.5 else rng.choice(facts)
    return draw_question(fact, language, rng), fact.answers[language]


def count_overlap(conversations: Iterator[Conversation], questions: list[str]) -> int:
    """How many of the questions occur, normalised, in the conversations."""
    wanted = {normalise(question) for question in questions}
    seen = {normalise(turn.question) for one in conversations for turn in one.turns}
    return len(wanted & seen)
