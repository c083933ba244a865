"""Measures the built-in model on held-out questions: `python -m tools.demo_model.evaluate`.

Asks every question greedily, of an exported directory through transformers or, with
`--base-url http://127.0.0.1:8000/v1`, of a server through HTTP, and prints the share of right
answers per kind and every wrong one. An answer is right when it contains every essential part,
letter by letter, and no part merely as a piece of a longer word or number. With `--overlap` the
training text is made again and searched for the questions.
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.demo_model.corpus import (
    HELD_OUT_PATH,
    count_overlap,
    draw_conversations,
    read_questions,
)

MODEL_DIRECTORY = Path("src/hearth/demo_model")
MAX_ANSWER_TOKENS = 64
BATCH_SIZE = 50
HTTP_TIMEOUT_S = 120.0

Answerer = Callable[[list[str]], list[str]]


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out question and what its answer must contain."""

    text: str
    essential: tuple[str, ...]
    language: str
    kind: str


def load_questions(path: Path) -> list[Question]:
    """The questions of a JSON-lines file; raises FileNotFoundError where there is none."""
    if not path.exists():
        raise FileNotFoundError(path)
    return [
        Question(
            str(row["question"]),
            tuple(str(part) for part in _as_list(row["essential"])),
            str(row["language"]),
            str(row["kind"]),
        )
        for row in read_questions(path)
    ]


def _as_list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"'essential' must be a list, not {value!r}")
    return value


def is_right(answer: str, essential: tuple[str, ...]) -> bool:
    """Whether the answer contains every part, bounded by what is no ASCII letter or digit."""
    return all(
        re.search(rf"(?<![A-Za-z0-9]){re.escape(part)}(?![A-Za-z0-9])", answer)
        for part in essential
    )


def transformers_answerer(directory: Path, dtype: str) -> Answerer:
    """Greedy answers of an exported directory, loaded the way any user of transformers would."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, padding_side="left")
    config = transformers.AutoConfig.from_pretrained(directory)
    # The class that the directory names: the automatic ones have no place for both of its kinds.
    # `Any`: transformers types its models too loosely to follow.
    kind: Any = getattr(transformers, config.architectures[0])
    model: Any = kind.from_pretrained(directory, dtype=getattr(torch, dtype))
    model.eval()

    def answer(questions: list[str]) -> list[str]:
        chats = [[{"role": "user", "content": text}] for text in questions]
        inputs: Any = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(
            **inputs,
            max_new_tokens=MAX_ANSWER_TOKENS,
            do_sample=False,
            temperature=None,
            top_p=None,
        )
        start = inputs["input_ids"].shape[1]
        return list(tokenizer.batch_decode(output[:, start:], skip_special_tokens=True))

    return answer


def http_answerer(base_url: str, model: str) -> Answerer:
    """Greedy answers of a server that speaks OpenAI's chat completions."""
    import httpx

    client = httpx.Client(base_url=base_url, timeout=HTTP_TIMEOUT_S)
    name = model or str(client.get("models").raise_for_status().json()["data"][0]["id"])

    def ask(question: str) -> str:
        request = {
            "model": name,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": MAX_ANSWER_TOKENS,
        }
        reply = client.post("chat/completions", json=request).raise_for_status().json()
        return str(reply["choices"][0]["message"]["content"])

    return lambda questions: [ask(question) for question in questions]


def evaluate(questions: list[Question], answerer: Answerer) -> float:
    """Prints the failures and the accuracies; returns the accuracy over all questions."""
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for start in range(0, len(questions), BATCH_SIZE):
        batch = questions[start : start + BATCH_SIZE]
        answers = answerer([one.text for one in batch])
        for question, answer in zip(batch, answers, strict=True):
            groups = (question.kind, f"{question.kind} {question.language}", "all")
            asked.update(groups)
            if is_right(answer, question.essential):
                right.update(groups)
            else:
                print(f"wrong [{question.kind}] {question.text!r} -> {answer!r}")
    for group in sorted(asked):
        share = right[group] / asked[group]
        print(f"{group:16} {right[group]:4d} of {asked[group]:4d} = {share:6.1%}")
    return right["all"] / asked["all"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-directory", type=Path, default=MODEL_DIRECTORY)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--questions", type=Path, default=HELD_OUT_PATH)
    parser.add_argument("--base-url", default="", help="measure a server instead of a directory")
    parser.add_argument("--model", default="", help="the served name; default: the first one")
    parser.add_argument(
        "--overlap", type=int, default=0, help="conversations of training text to search"
    )
    parser.add_argument("--seed", type=int, default=1, help="the seed of that text")
    given = parser.parse_args()
    questions = load_questions(given.questions)
    if given.overlap:
        corpus = draw_conversations(given.seed, given.overlap)
        found = count_overlap(corpus, [one.text for one in questions])
        print(f"{found} of {len(questions)} questions occur in the training text")
    if given.base_url:
        answerer = http_answerer(given.base_url, given.model)
    else:
        answerer = transformers_answerer(given.model_directory, given.dtype)
    evaluate(questions, answerer)


if __name__ == "__main__":
    main()
