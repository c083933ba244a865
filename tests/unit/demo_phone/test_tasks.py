"""Tasks: deterministic from a seed, solved by the expert, and never done at their start."""

from __future__ import annotations

import random

import pytest
from tests.unit.demo_phone.phones import HEIGHT, WIDTH, PerfectAgent, device

from hearth.core.errors import ConfigError
from hearth.demo_phone.actions import Finish, Home, Tap
from hearth.demo_phone.expert import Expert
from hearth.demo_phone.look import random_look
from hearth.demo_phone.session import Device, is_success, run_task
from hearth.demo_phone.state import Phone
from hearth.demo_phone.tasks import (
    Task,
    every_task,
    random_task,
    read_task,
    starting_state,
    wordings,
)
from hearth.demo_phone.words import APPS, LANGUAGES, SWITCHES, Language


def start(seed: int) -> tuple[Task, Language, Device]:
    rng = random.Random(seed)
    task, language = random_task(rng), rng.choice(LANGUAGES)
    state = starting_state(task, language, rng)
    return task, language, Device(state, random_look(rng, WIDTH, HEIGHT), WIDTH, HEIGHT)


def test_a_seed_gives_the_same_task_and_phone_every_time() -> None:
    for seed in range(30):
        assert start(seed) == start(seed)


def test_the_expert_solves_every_random_task_and_no_task_solves_itself() -> None:
    for seed in range(300):
        task, _, phone = start(seed)
        expert = Expert(task, phone.look)
        num_steps = 0
        while not isinstance((decision := expert.decide(phone.state)).action, Finish):
            hit = phone.perform(decision.action)
            if isinstance(decision.action, Tap):
                assert hit == decision.target
            num_steps += 1
            assert num_steps <= 9, (seed, task)
        assert task.is_done(phone.state), (seed, task)
        assert num_steps > 0 or task.kind == "switch"


def test_thoughts_say_what_the_screen_shows_before_what_to_do() -> None:
    phone = device()

    def thought(task: Task) -> str:
        return Expert(task, phone.look).decide(phone.state).thought

    shown, hidden = (phone.state.icons[at] for at in (0, -1))
    assert thought(Task("open", shown)) == f"{APPS[shown].en}: here. Tap."
    assert thought(Task("open", hidden)) == f"{APPS[hidden].en}: not here. Swipe."
    key = phone.state.switch_order[0]
    phone.state.switches[key] = False
    Phone(phone.state).perform(Tap((0, 0)), "settings")
    assert thought(Task("switch", key)) == f"{SWITCHES[key].en}: off. Tap."
    Phone(phone.state).perform(Tap((0, 0)), key)
    assert thought(Task("switch", key)) == f"{SWITCHES[key].en}: on. Done."


def test_the_expert_finds_its_way_back_from_a_wrong_app() -> None:
    phone = device()
    task = Task("open", "camera")
    expert = Expert(task, phone.look)
    Phone(phone.state).perform(Tap((0, 0)), "music")
    assert expert.decide(phone.state).action == Home()


def test_a_switch_turned_by_mistake_is_no_success() -> None:
    phone = device()
    phone.state.switches["wifi"] = False
    task = Task("switch", "wifi")
    hand = Phone(phone.state)
    for hit in ("settings", "bluetooth", "wifi"):
        hand.perform(Tap((0, 0)), hit)
    assert phone.state.switches["wifi"]
    assert not task.is_done(phone.state)


def test_going_home_afterwards_belongs_to_the_task() -> None:
    phone = device()
    task = Task("open", "camera", then="home")
    hand = Phone(phone.state)
    hand.perform(Tap((0, 0)), "camera")
    assert not task.is_done(phone.state)
    hand.perform(Home())
    assert task.is_done(phone.state)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_wording_is_read_as_its_task(language: Language) -> None:
    for task in every_task():
        for text in wordings(task, language):
            assert read_task(text.upper() + " .", language) == task


def test_an_unknown_task_is_an_error_with_examples() -> None:
    with pytest.raises(ConfigError, match="make coffee") as caught:
        read_task("make coffee", "en")
    assert "Turn on Wi-Fi" in str(caught.value)


def test_a_session_sends_one_image_and_keeps_nested_tags_in_its_history() -> None:
    phone = device()
    task = Task("open", phone.state.icons[0], then="home")
    agent = PerfectAgent(task, phone)
    steps = list(run_task(phone, "Open it, then go home", agent))
    assert is_success(task, phone.state, steps)
    last = agent.seen[-1]
    images = [
        part
        for message in last
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "image_url"
    ]
    assert len(images) == 1
    assert last[-1]["content"][0] is images[0]
    assert images[0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert isinstance(last[0]["content"], str)
    assert last[1]["content"][0]["text"].startswith("Open it, then go home\n\n{")
    assert last[2]["content"].startswith("<think><think>Camera: here. Tap.<")
    assert last[2]["content"].endswith("])</answer>")


def test_a_reply_that_cannot_be_read_ends_the_task_without_success() -> None:
    phone = device()
    steps = list(run_task(phone, "Open Camera", lambda _: "I cannot."))
    assert len(steps) == 1
    assert steps[0].step.error
    assert not is_success(Task("open", "camera"), phone.state, steps)
