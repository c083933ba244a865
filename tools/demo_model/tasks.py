"""Arithmetic and JSON questions with their answers.

Owns the operand ranges, the pairs of operands that training never sees, and the form of the
answers. An answer repeats the expression ("7 + 5 = 12"), so that the model first copies the
operands to a fixed place; sums and differences with a two-digit operand show the tens and the
units on the way ("37 + 45 = 70 + 12 = 82"), so that each step needs single digits alone.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from tools.demo_model.phrasing import Grammar, data_lines, draw_weighted, parse

MAX_ADDEND = 99
MAX_FACTOR = 12
OPERATORS = ("+", "-", "*")
OPERATOR_WEIGHTS = (0.4, 0.4, 0.2)
NEGATIVE_SHARE = 0.12
PLAIN_CAPITAL_SHARE = 0.12
HELD_OUT_MODULUS = 97
HELD_OUT_RESIDUE = 5


@dataclass(frozen=True, slots=True)
class Expression:
    """Two operands and an operator."""

    left: int
    operator: str
    right: int

    @property
    def value(self) -> int:
        """The result of the expression."""
        if self.operator == "+":
            return self.left + self.right
        if self.operator == "-":
            return self.left - self.right
        return self.left * self.right

    @property
    def steps(self) -> str:
        """The tens and the units ("70 + 12"); empty where no step is needed."""
        if self.operator == "*" or max(self.left, self.right) < 10:
            return ""
        sign = 1 if self.operator == "+" else -1
        tens = (self.left // 10 + sign * (self.right // 10)) * 10
        units = self.left % 10 + sign * (self.right % 10)
        return f"{tens} {'-' if units < 0 else '+'} {abs(units)}"

    @property
    def solution(self) -> str:
        """The expression, its steps and its value as one chain of equations."""
        steps = f"{self.steps} = " if self.steps else ""
        return f"{self.left} {self.operator} {self.right} = {steps}{self.value}"


def is_held_out(left: int, right: int) -> bool:
    """Whether the pair, in either order, is kept for evaluation (sums and differences).

    About one pair in a hundred. Products are not held out by pair: a multiplication table cannot
    be inferred, only learnt; they are held out by wording.
    """
    return (left * right + 31 * (left + right)) % HELD_OUT_MODULUS == HELD_OUT_RESIDUE


def draw_expression(rng: random.Random) -> Expression:
    """A random expression that training may see."""
    operator = rng.choices(OPERATORS, weights=OPERATOR_WEIGHTS)[0]
    if operator == "*":
        return Expression(rng.randint(0, MAX_FACTOR), "*", rng.randint(0, MAX_FACTOR))
    while True:
        left, right = rng.randint(0, MAX_ADDEND), rng.randint(0, MAX_ADDEND)
        if operator == "-" and left < right and rng.random() > NEGATIVE_SHARE:
            left, right = right, left
        if not is_held_out(left, right):
            return Expression(left, operator, right)


@cache
def _wordings() -> dict[str, tuple[Grammar, ...]]:
    table: dict[str, list[Grammar]] = {}
    for line in data_lines("tasks.txt"):
        head, _, body = line.partition(": ")
        table.setdefault(head, []).append(parse(body))
    return {head: tuple(grammars) for head, grammars in table.items()}


@cache
def _capitals() -> tuple[tuple[str, str, str, str], ...]:
    rows = (line.split("|") for line in data_lines("capitals.txt"))
    return tuple((row[0], row[1], row[2], row[3]) for row in rows)


def _word(head: str, values: dict[str, str], rng: random.Random) -> str:
    """A wording with its placeholders (single capital letters between non-letters) filled in."""
    text = draw_weighted(_wordings()[head], rng)
    filled = []
    for at, char in enumerate(text):
        alone = not (text[at - 1 : at].isascii() and text[at - 1 : at].isalpha()) and not (
            text[at + 1 : at + 2].isascii() and text[at + 1 : at + 2].isalpha()
        )
        filled.append(values[char] if alone and char in values else char)
    return "".join(filled)


def draw_arithmetic(language: str, rng: random.Random) -> tuple[str, str]:
    """A question and its answer."""
    expression = draw_expression(rng)
    left, right = str(expression.left), str(expression.right)
    question = _word(f"{language} {expression.operator}", {"A": left, "B": right}, rng)
    return question, expression.solution


def draw_json_result(language: str, rng: random.Random) -> tuple[str, str]:
    """A question that wants the value of an expression as JSON, and its answer."""
    expression = draw_expression(rng)
    gap = rng.choice(("", " "))
    sign = rng.choice(("*", "x", "×")) if expression.operator == "*" else expression.operator
    text = f"{expression.left}{gap}{sign}{gap}{expression.right}"
    question = _word(f"{language} value", {"E": text}, rng)
    steps = {"steps": expression.steps} if expression.steps else {}
    return _as_json(question, {**steps, "result": expression.value}, language, rng)


def draw_capital(language: str, rng: random.Random) -> tuple[str, str]:
    """A question for a capital, mostly wanted as JSON, and its answer."""
    row = rng.choice(_capitals())
    country, capital = row[:2] if language == "en" else row[2:]
    question = _word(f"{language} capital", {"C": country}, rng)
    if rng.random() < PLAIN_CAPITAL_SHARE:
        return question, _plain_capital(language, country, capital)
    keys = ("country", "capital") if language == "en" else ("国家", "首都")
    return _as_json(question, {keys[0]: country, keys[1]: capital}, language, rng)


def _as_json(
    question: str, answer: Mapping[str, str | int], language: str, rng: random.Random
) -> tuple[str, str]:
    question = _word(f"{language} json", {"Q": question}, rng)
    return question, json.dumps(answer, ensure_ascii=False)


def _plain_capital(language: str, country: str, capital: str) -> str:
    if language == "en":
        return f"The capital of {country} is {capital}."
    return f"{country}的首都是{capital}。"
