"""What is drafted pays: simulated steps, whose time is a function of their rows."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from hearth.core.request import Request
from hearth.engine.kv.blocks import BlockTable
from hearth.engine.sequence import Sequence as EngineSequence
from hearth.engine.speculation.chances import AllGuesses, GuessRecord, reach
from hearth.engine.speculation.drafter import MAX_DRAFT, NgramDrafter
from hearth.engine.speculation.prices import RowPrices

Text = tuple[list[int], list[int]]  # a prompt and its answer
Cost = Callable[[int], float]


def memory_bound(rows: int) -> float:
    """A step that reads weights for 23 ms and computes a row in 1.7 ms, one after the other."""
    return 23 + 1.7 * rows


def compute_bound(rows: int) -> float:
    """Every row costs the same."""
    return 5.0 * rows


@dataclass
class Simulated:
    """A run without a model: every answer is known, a step's time is made up."""

    time: float = 0.0
    num_drafted: int = 0
    num_accepted: int = 0
    longest: int = 0


def simulate(
    texts: Sequence[Text],
    cost: Cost,
    drafter: NgramDrafter | None,
    noise: Callable[[], float] = lambda: 1.0,
) -> Simulated:
    """All texts side by side, to the end of the last."""
    found = Simulated()
    running: list[tuple[EngineSequence, list[int]]] = []
    for number, (prompt, answer) in enumerate(texts):
        request = Request(f"r{number}", tuple(prompt), len(answer))
        running.append((EngineSequence(request, number, BlockTable(1), 1 << 20), answer))
    while running:
        sequences = [sequence for sequence, _ in running]
        drafts: dict[int, array[int]] = {}
        if drafter is not None:
            drafts = drafter.draft(sequences, 64, lambda s: s.max_known - s.num_known - 1)
        num_drafted = sum(map(len, drafts.values()))
        step_s = cost(len(running) + num_drafted) * noise()
        found.time += step_s
        for index, (sequence, answer) in enumerate(running):
            done, draft = sequence.num_generated, drafts.get(index, ())
            accepted = 0
            while accepted < len(draft) and draft[accepted] == answer[done + accepted]:
                accepted += 1
            sequence.append(answer[done : done + accepted + 1])
            if drafter is not None and draft:
                drafter.note_verified(len(draft), accepted)
                found.num_accepted += accepted
                found.longest = max(found.longest, len(draft))
        if drafter is not None:
            drafter.note_step(sequences, num_drafted, step_s)
        found.num_drafted += num_drafted
        running = [(s, answer) for s, answer in running if s.num_generated < len(answer)]
    return found


def speedup(
    texts: Sequence[Text], cost: Cost, *, noise: float = 0.0, drafter: NgramDrafter | None = None
) -> float:
    """The time without drafts divided by the time with them."""
    chance = random.Random(7)

    def disturbed() -> float:
        return max(0.7, chance.lognormvariate(0, noise)) if noise else 1.0

    plain = simulate(texts, cost, None, disturbed).time
    return plain / simulate(texts, cost, drafter or NgramDrafter(lambda: 0.0), disturbed).time


def copies(chance: random.Random) -> Text:
    """An answer that repeats a part of the prompt, with a slip now and then."""
    prompt = [chance.randrange(3000) for _ in range(400)]
    answer = [t if chance.random() > 0.05 else chance.randrange(3000) for t in prompt[50:350]]
    return prompt, answer


def strangers(chance: random.Random) -> Text:
    """Nothing repeats."""
    text = [chance.randrange(3000) for _ in range(450)]
    return text[:200], text[200:]


def digits(chance: random.Random) -> Text:
    """Everything seems to repeat, by chance."""
    text = [chance.randrange(8) for _ in range(450)]
    return text[:200], text[200:]


def traps(chance: random.Random) -> Text:
    """Long matches, each of which leads astray."""
    text: list[int] = []
    while len(text) < 450:
        text += [*range(10), *(chance.randrange(100, 3000) for _ in range(4))]
    return text[:200], text[200:450]


KINDS = (strangers, digits, traps)


@pytest.mark.parametrize("num_streams", [1, 4])
def test_copies_come_much_faster_where_rows_are_cheap(num_streams: int) -> None:
    chance = random.Random(1)
    texts = [copies(chance) for _ in range(num_streams)]
    assert speedup(texts, memory_bound) > (3.0 if num_streams == 1 else 1.8)
    assert speedup(texts, memory_bound, noise=0.3) > (2.5 if num_streams == 1 else 1.5)


@pytest.mark.parametrize("cost", [memory_bound, compute_bound])
@pytest.mark.parametrize("num_streams", [1, 8])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_nothing_is_lost_where_nothing_repeats(
    kind: Callable[[random.Random], Text], num_streams: int, cost: Cost
) -> None:
    chance = random.Random(2)
    assert speedup([kind(chance) for _ in range(num_streams)], cost) > 0.98


def test_nothing_is_lost_where_rows_are_dear() -> None:
    chance = random.Random(3)
    assert speedup([copies(chance)], compute_bound) > 0.98
    assert speedup([copies(chance) for _ in range(8)], compute_bound) > 0.98


def test_a_drafter_that_believes_everything_would_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the estimate of what comes true, and without the credit."""
    module = "hearth.engine.speculation.drafter"
    monkeypatch.setattr(f"{module}.reach", lambda *arguments: [0.9] * 8)
    monkeypatch.setattr(f"{module}.CREDIT", 1e9)
    assert speedup([digits(random.Random(2))], memory_bound) < 0.9


def test_the_credit_alone_bounds_what_a_believer_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hearth.engine.speculation.drafter.reach", lambda *arguments: [0.9] * 8)
    assert speedup([digits(random.Random(2)) for _ in range(2)], memory_bound) > 0.97


def test_a_stream_that_begins_to_repeat_is_found_without_having_been_tried() -> None:
    chance = random.Random(4)
    prompt, answer = strangers(chance)
    drafter = NgramDrafter(lambda: 0.0)
    quiet = simulate([(prompt, answer)], memory_bound, drafter)
    assert quiet.num_drafted < 4
    loud = simulate([(prompt, answer[:100] + answer[:200])], memory_bound, drafter)
    assert loud.num_accepted > 80
    assert loud.longest == MAX_DRAFT


def test_a_draft_ends_with_the_token_that_would_end_the_answer() -> None:
    text = [*range(10, 30), 5, *range(30, 60), *range(10, 28)]
    sequence = EngineSequence(
        Request("r", tuple(text), 50, stop_token_ids=frozenset({5})), 0, BlockTable(1), 1 << 20
    )
    drafter = NgramDrafter(lambda: 0.0)
    drafter.draft([sequence], 64, lambda s: 40)
    drafter.note_step([sequence], 0, 1.0)
    draft = drafter.draft([sequence], 64, lambda s: 40)[0]
    assert draft.tolist() == [28, 29, 5]


@pytest.mark.parametrize(("most", "room"), [(64, 2), (2, 40), (1, 1), (64, 0)])
def test_drafts_keep_to_the_room_that_there_is(most: int, room: int) -> None:
    text = tuple(range(40)) * 3
    sequences = [
        EngineSequence(Request(f"{n}", text, 50), n, BlockTable(1), 1 << 20) for n in range(3)
    ]
    drafter = NgramDrafter(lambda: 0.0)
    drafter.draft(sequences, most, lambda s: room)
    drafter.note_step(sequences, 0, 1.0)
    drafts = drafter.draft(sequences, most, lambda s: room)
    assert sum(map(len, drafts.values())) <= most
    assert all(len(draft) <= room for draft in drafts.values())
    assert bool(drafts) == (room > 0)


@pytest.mark.parametrize(("step_s", "num_looks"), [(0.5, 100), (0.01, 5), (0.0001, 1)])
def test_looking_in_vain_takes_a_small_share_of_the_time(step_s: float, num_looks: int) -> None:
    """A look takes a millisecond, by a clock that only looks move."""
    now = iter(range(10**6))
    drafter = NgramDrafter(lambda: next(now) / 1000)
    sequence = EngineSequence(Request("r", tuple(range(50)), 200), 0, BlockTable(1), 1 << 20)
    looks = 0
    for token in range(100, 200):
        if not drafter.is_resting():
            looks += 1
            assert drafter.draft([sequence], 64, lambda s: 40) == {}
            drafter.note_step([sequence], 0, step_s)
        sequence.append([token])
    assert num_looks <= looks <= 2 * num_looks + 4  # what a look takes is learnt


def test_who_drafts_does_not_rest() -> None:
    now = iter(range(10**6))
    drafter = NgramDrafter(lambda: next(now) / 1000)
    text = tuple(range(40)) * 3
    sequence = EngineSequence(Request("r", text, 200), 0, BlockTable(1), 1 << 20)
    assert drafter.draft([sequence], 64, lambda s: 40) == {}  # to have something to compare with
    drafter.note_step([sequence], 0, 0.0001)
    assert not drafter.is_resting()
    assert drafter.draft([sequence], 64, lambda s: 40)
    drafter.note_step([sequence], 3, 0.0001)
    assert not drafter.is_resting()


def test_a_price_is_learnt_from_steps_and_forgets_a_disturbed_one() -> None:
    prices = RowPrices()
    first = prices.prices(1)[2]
    for _ in range(60):
        prices.note(1, 0, 1.0)
        prices.note(1, 5, 2.5)
    assert prices.prices(1)[2] == pytest.approx(0.3, rel=0.05)
    assert first < 0.1
    prices.note(1, 5, 50.0)
    assert prices.prices(1)[2] < 0.4
    assert prices.prices(16)[2] == pytest.approx(16 / 28)


def test_other_company_needs_plain_steps_of_its_own() -> None:
    prices = RowPrices()
    assert prices.wants_plain_step(1)
    prices.note(1, 0, 1.0)
    assert not prices.wants_plain_step(1)
    prices.change_company()
    assert prices.wants_plain_step(1)
    prices.note(1, 5, 9.0)  # with nothing to compare it with
    assert prices.prices(1) == RowPrices().prices(1)


def test_chances_descend_and_follow_what_the_text_shows() -> None:
    own, everybody = GuessRecord(), AllGuesses()
    before = reach(own, everybody.rates(), 4, 16, 0.01)
    assert before == sorted(before, reverse=True)
    for _ in range(20):
        own.note(4, True)
    assert reach(own, everybody.rates(), 4, 16, 0.01)[0] > 0.85
    for _ in range(20):
        own.note(5, False)
    assert reach(own, everybody.rates(), 4, 16, 0.01)[0] < 0.35
    assert reach(own, everybody.rates(), 4, 16, 0.35) == []
