"""The phone's training examples as text and plain data: steps of tasks, and questions on a screen.

A step is one decision of the expert inside an episode, with the history as the client keeps it;
now and then a tap goes astray, so that the model learns to go on from there. A question asks where
one element is. Nothing here knows tensors.
"""

import random
from dataclasses import dataclass

from tools.demo_model.phone_tokenizer import (
    BEGIN_OF_IMAGE,
    END_OF_ANSWER,
    END_OF_IMAGE,
    IMAGE,
)

from hearth.demo_phone.actions import Finish, Tap
from hearth.demo_phone.expert import Decision, Expert, sight_of
from hearth.demo_phone.layout import Element, element_at, layout, surface
from hearth.demo_phone.look import HELD_OUT_RESOLUTIONS, RESOLUTIONS, Look, random_look
from hearth.demo_phone.messages import (
    SYSTEM,
    PastStep,
    assistant_text,
    reply_text,
    screen_info,
    user_text,
)
from hearth.demo_phone.parser import split_reply
from hearth.demo_phone.state import SETTINGS, Phone, PhoneState, random_state
from hearth.demo_phone.tasks import Task, random_task, starting_state, wordings
from hearth.demo_phone.words import (
    APPS,
    BUTTON_PAIRS,
    BUTTONS,
    LANGUAGES,
    QUERIES,
    SEARCH_APPS,
    SWITCHES,
    WIDGETS,
    Language,
)

MAX_STEPS = 9
ASTRAY_SHARE = 0.06
SWITCH_SHARE = 0.2  # beyond those of random tasks
IMAGE_MARK = f"{BEGIN_OF_IMAGE}{IMAGE}{END_OF_IMAGE}"
NUM_QUESTIONS = 6
NUM_ABSENT = 3
# Seeds below this number are of training; measurements draw theirs from above.
FIRST_HELD_OUT_SEED = 1 << 40


@dataclass(frozen=True, slots=True)
class Screen:
    """What is to be drawn: a copy of the state, the look, and the native size."""

    state: PhoneState
    look: Look
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Example:
    """A screen and the text of a conversation about it.

    `is_dense`: every answer counts in the loss, not the last one alone (the others had images of
    their own). `target`: the element that the last answer taps, or "". `kind`: of its
    action, or "".
    """

    screen: Screen
    text: str
    is_dense: bool
    target: str = ""
    kind: str = ""


@dataclass(slots=True)
class Episode:
    """A task on a phone, as training and measurement draw it from a seed."""

    task: Task
    language: Language
    state: PhoneState
    look: Look
    width: int
    height: int
    wording: str


def draw_episode(rng: random.Random, *, is_held_out: bool = False) -> Episode:
    """A random task on a random phone; held-out ones have resolutions of their own."""
    language: Language = rng.choice(LANGUAGES)
    width, height = rng.choice(HELD_OUT_RESOLUTIONS if is_held_out else RESOLUTIONS)
    task = random_task(rng)
    if not is_held_out and rng.random() < SWITCH_SHARE:
        while task.kind != "switch":  # rows of a list differ in their text alone: they take longest
            task = random_task(rng)
    state = starting_state(task, language, rng)
    look = random_look(rng, width, height)
    wording = rng.choice(wordings(task, language))
    return Episode(task, language, state, look, width, height, wording)


def copied(state: PhoneState) -> PhoneState:
    """The state as it is now."""
    return PhoneState(
        state.language,
        state.icons,
        state.switch_order,
        dict(state.switches),
        state.app,
        state.page,
        state.dialog,
        state.is_focused,
        state.text,
        state.results,
        list(state.log),
    )


def step_examples(rng: random.Random, *, astray_share: float = ASTRAY_SHARE) -> list[Example]:
    """Every step of one random episode."""
    return examples_of(draw_episode(rng), rng, astray_share=astray_share)


def examples_of(episode: Episode, rng: random.Random, *, astray_share: float) -> list[Example]:
    """Every step of an episode that the expert goes through."""
    state = episode.state
    phone, expert = Phone(state), Expert(episode.task, episode.look)
    past: list[PastStep] = []
    examples = []
    for number in range(MAX_STEPS):
        decision = expert.decide(state)
        text = user_text(episode.wording, number, screen_info(state.app, state.language))
        reply = reply_text(decision.thought, str(decision.action))
        screen = Screen(copied(state), episode.look, episode.width, episode.height)
        prompt = prompt_text(state.language, past, text)
        kind = type(decision.action).__name__
        whole = prompt + reply + END_OF_ANSWER
        examples.append(Example(screen, whole, False, decision.target, kind))
        if isinstance(decision.action, Finish):
            break
        decision = _perform(phone, decision, episode.look, astray_share, rng)
        parts = split_reply(reply_text(decision.thought, str(decision.action)))
        past.append(PastStep(text, parts.thinking, parts.action))
    return examples


def _perform(
    phone: Phone, decision: Decision, look: Look, astray_share: float, rng: random.Random
) -> Decision:
    """Carries a decision out, sometimes with the tap at a wrong place; returns what was done."""
    action, hit = decision.action, None
    if isinstance(action, Tap):
        if rng.random() < astray_share:
            action = Tap((rng.randint(60, 940), rng.randint(60, 940)))
        element = element_at(layout(phone.state, look), action.at)
        hit = element.key if element else None
    phone.perform(action, hit)
    return Decision(decision.thought, action)


def prompt_text(language: Language, past: list[PastStep], text: str) -> str:
    """A step's conversation up to the answer, as the chat template renders it."""
    parts = [f"[gMASK]<sop><|system|>\n{SYSTEM[language]}"]
    parts += [f"<|user|>\n{one.text}<|assistant|>\n{assistant_text(one)}" for one in past]
    parts.append(f"<|user|>\n{IMAGE_MARK}{text}<|assistant|>\n")
    return "".join(parts)


def question_example(rng: random.Random) -> Example:
    """Several questions on one random screen."""
    language: Language = rng.choice(LANGUAGES)
    width, height = rng.choice(RESOLUTIONS)
    look = random_look(rng, width, height)
    state = random_state(language, rng)
    _wander(state, rng)
    system = f"<|system|>\n{SYSTEM[language]}" if rng.random() < 0.5 else ""
    parts = [f"[gMASK]<sop>{system}"]
    for number, (question, answer) in enumerate(_questions(state, look, rng)):
        image = IMAGE_MARK if number == 0 else ""
        parts.append(f"<|user|>\n{image}{question}<|assistant|>\n{answer}{END_OF_ANSWER}")
    return Example(Screen(state, look, width, height), "".join(parts), is_dense=True)


def _wander(state: PhoneState, rng: random.Random) -> None:
    """Opens something at random."""
    place = rng.random()
    if place < 0.5:
        state.page = rng.randrange(2)
    elif place < 0.78:
        state.app, state.page = SETTINGS, rng.randrange(2)
    else:
        state.app = rng.choice(SEARCH_APPS)
        if rng.random() < 0.6:
            state.text = rng.choice(sorted(QUERIES.values(), key=str)).in_(state.language)
            state.results = state.text if rng.random() < 0.4 else ""
        state.is_focused = not state.results and rng.random() < 0.6
    if rng.random() < 0.12:
        state.dialog = rng.randrange(len(BUTTON_PAIRS))


def _questions(state: PhoneState, look: Look, rng: random.Random) -> list[tuple[str, str]]:
    """Different questions and their answers: where something is, or that it is not there."""
    language = state.language
    present = list(layout(state, look))
    rng.shuffle(present)
    pairs = [_presence(one, language) for one in present[:NUM_QUESTIONS]]
    if state.dialog is None:
        table = SWITCHES if state.app == SETTINGS else APPS
        shown = {one.key for one in surface(state, look)}
        absent = [key for key in table if key not in shown]
        for key in rng.sample(absent, NUM_ABSENT):
            thought = sight_of(table[key], None, language).rstrip()
            pairs.append((f"{table[key].in_(language)}?", f"<think>{thought}"))
    rng.shuffle(pairs)
    return pairs


def _presence(one: Element, language: Language) -> tuple[str, str]:
    name = {**APPS, **SWITCHES, **BUTTONS, **WIDGETS}[one.key]
    thought = sight_of(name, one, language).rstrip()
    return f"{name.in_(language)}?", reply_text(thought, str(Tap(one.center)))
