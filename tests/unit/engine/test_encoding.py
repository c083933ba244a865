"""Images between the steps: what is encoded when, what is kept, and who is ended by a bad one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.toy_encoder import OUTPUT_BYTES, ToyRig


def test_an_image_that_the_prefix_cache_lost_in_the_same_step_is_encoded_anew(
    tmp_path: Path,
) -> None:
    """Within a step a stream needs a block and shortens what a waiting request found."""
    rig = ToyRig(tmp_path, num_blocks=40)
    image = rig.image(16, 9)
    rig.submit("first", [1] * 16, image, max_tokens=1)
    rig.step(60)
    for number in range(3):
        rig.submit(f"text {number}", [30 + number] * 160)
        rig.step(60)
    num_blank = len(rig.engine._blocks._groups[0].free)
    rig.submit("rest", [60] * (16 * num_blank - 1), max_tokens=1)
    rig.step(60)
    assert not rig.engine._blocks._groups[0].free
    rig.encoding._outputs.clear()
    rig.submit("stream", [3] * 14, max_tokens=200)
    rig.step()
    stream = rig.engine.scheduler._queues.by_id["stream"]
    while stream.num_computed % 16:
        rig.step()
    rig.submit("again", [1] * 16, image, max_tokens=1)
    rig.step(60)
    assert rig.ended["again"] == "length"
    assert rig.encoder.num_started == 2


def test_outputs_of_waiting_requests_do_not_push_each_other_out(tmp_path: Path) -> None:
    rig = ToyRig(tmp_path, max_num_seqs=2, cache_bytes=4 * OUTPUT_BYTES)
    for number in range(12):
        rig.submit(f"{number}", [1] * 5, rig.image(5, 8 * number), max_tokens=30)
    rig.step(600)
    assert set(rig.ended.values()) == {"length"}
    assert rig.encoder.num_started == 12
    assert rig.encoding.num_bytes <= 4 * OUTPUT_BYTES


def test_nothing_is_encoded_while_nobody_can_use_it(tmp_path: Path) -> None:
    rig = ToyRig(tmp_path, max_num_seqs=1, cache_bytes=4 * OUTPUT_BYTES, num_blocks=200)
    rig.submit("long", [1] * 10, max_tokens=400)
    rig.step()
    for number in range(6):
        rig.submit(f"{number}", [1] * 4, rig.image(4, 8 * number))
    rig.step(300)
    assert rig.encoder.num_started == 4


def test_one_image_is_encoded_once_for_all_who_show_it(tmp_path: Path) -> None:
    rig = ToyRig(tmp_path)
    for number in range(4):
        rig.submit(f"{number}", [number + 20] * 5, rig.image(5, 100, f"-{number}"))
    rig.step(60)
    assert set(rig.ended.values()) == {"length"}
    assert rig.encoder.num_started == 1


def test_a_file_that_is_gone_ends_the_request_whose_file_it_was(tmp_path: Path) -> None:
    """Its client left during a step; another one shows the same image."""
    rig = ToyRig(tmp_path)
    gone = rig.submit("gone", [1] * 4, rig.image(4, 50, "-a"))
    rig.submit("other", [1] * 4, rig.image(4, 50, "-b"))
    rig.executor.before_step = lambda: Path(gone.images[0].path).unlink(missing_ok=True)
    rig.step(40)
    assert rig.ended["gone"].startswith("error the pixels of an image are gone")
    assert rig.ended["other"] == "length"


def test_a_text_passes_requests_whose_images_are_not_encoded(tmp_path: Path) -> None:
    """Their prefix, whole blocks, is in the cache, so that the image is what comes next."""
    rig = ToyRig(tmp_path, num_blocks=2000, max_num_seqs=64, budget=256)
    rig.submit("warm", [5] * 32, max_tokens=1)
    rig.step(5)
    for number in range(40):
        rig.submit(f"{number}", [5] * 32, rig.image(32, number))
    rig.submit("text", [5] * 32, max_tokens=2)
    rig.step(6)
    assert rig.ended.get("text") == "length"
    rig.step(300)
    assert len(rig.ended) == 42


def test_a_cancelled_request_leaves_the_encoder_to_the_next(tmp_path: Path) -> None:
    rig = ToyRig(tmp_path)
    rig.submit("first", [1] * 4, rig.image(4, 1))
    rig.step()
    rig.engine.cancel("first")
    rig.submit("second", [1] * 4, rig.image(4, 2))
    rig.step(40)
    assert rig.ended["first"].startswith("cancelled")
    assert rig.ended["second"] == "length"


def test_the_encoder_gets_as_much_time_as_the_steps(tmp_path: Path) -> None:
    """Else an image of thousands of calls would wait for as many steps of others."""
    rig = ToyRig(tmp_path, num_blocks=400, budget=256)
    rig.encoder.call_s = 1.0
    rig.submit("text", [1] * 4, max_tokens=500)
    rig.step()
    rig.submit("image", [1] * 4, rig.image(4, 1, side=40))  # 1,600 patches: 17 calls
    begun = rig.clock.now

    def take_4_s() -> None:
        rig.clock.now += 4.0

    rig.executor.before_step = take_4_s
    num_steps = 0
    while rig.encoding.num_encoded == 0 and num_steps < 20:
        rig.step()
        num_steps += 1
    assert num_steps == 5
    assert rig.clock.now - begun == 5 * 4.0 + 17 * 1.0


def test_prompts_of_a_worse_priority_wait_for_an_image(tmp_path: Path) -> None:
    rig = ToyRig(tmp_path, num_blocks=400, max_num_seqs=8)
    rig.submit("decoding", [1] * 4, max_tokens=200, priority=5)
    rig.submit("long", [3] * 200, max_tokens=1, priority=5)
    rig.step()
    rig.submit("image", [1] * 4, rig.image(4, 1, side=30), max_tokens=1)
    for number in range(4):
        rig.submit(f"late {number}", [number] * 100, max_tokens=1, priority=5)
        rig.submit(f"equal {number}", [number] * 20, max_tokens=1)
    rig.step(60)
    assert rig.order[:4] == [f"equal {number}" for number in range(4)]
    assert rig.order[4] == "image"
    assert {"long", "late 3"} <= set(rig.ended)
    assert "decoding" not in rig.ended


def test_an_image_gives_way_to_one_of_a_better_priority(tmp_path: Path) -> None:
    rig = ToyRig(tmp_path, num_blocks=400)
    rig.submit("worse", [1] * 4, rig.image(4, 1, side=36), max_tokens=1, priority=1)
    rig.step(2)
    assert not rig.encoding.is_idle
    rig.submit("equal", [1] * 4, rig.image(4, 2, side=36), max_tokens=1, priority=1)
    rig.step(2)
    rig.submit("better", [1] * 4, rig.image(4, 3, side=8), max_tokens=1)
    rig.step(80)
    assert rig.order == ["better", "worse", "equal"]
    assert rig.encoder.num_started == 4  # the first one twice


def test_an_image_without_room_holds_nobody_up(tmp_path: Path) -> None:
    """Two outputs do not fit; the first image's request cannot be admitted before `text` ends."""
    rig = ToyRig(tmp_path, num_blocks=14, cache_bytes=OUTPUT_BYTES, max_num_seqs=4)
    rig.submit("text", [3] * 150, max_tokens=2, priority=5)
    rig.step()
    rig.submit("first", [1] * 4, rig.image(4, 1), max_tokens=1)
    rig.submit("second", [2] * 4, rig.image(4, 2), max_tokens=1)
    rig.step(80)
    assert sorted(rig.order) == ["first", "second", "text"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_tokens": 16}, "another grid than tokens"),
        ({"grid_height": 1 << 12, "grid_width": 1 << 12, "num_tokens": 1 << 24}, "has room for"),
        ({"first_token": 60}, "behind the prompt's end"),
    ],
)
def test_images_that_do_not_fit_are_refused_alone(
    tmp_path: Path, change: dict[str, int], message: str
) -> None:
    rig = ToyRig(tmp_path)
    changed: dict[str, Any] = {**change}
    image = replace(rig.image(4, 1), **changed)
    rig.submit("bad", [1] * 4, image)
    rig.submit("good", [1] * 4, rig.image(4, 2))
    rig.step(40)
    assert message in rig.ended["bad"]
    assert rig.ended["good"] == "length"


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    plan=st.lists(
        st.tuples(
            st.integers(1, 40),  # text before the image
            st.integers(-1, 5),  # its colour; −1: none
            st.integers(1, 40),  # tokens of the answer
            st.integers(0, 4),  # steps until the next one comes
            st.booleans(),  # whether its client leaves
        ),
        min_size=1,
        max_size=12,
    ),
    num_blocks=st.integers(12, 40),
    num_outputs=st.integers(1, 4),
    max_num_seqs=st.integers(1, 6),
)
def test_every_request_ends_whatever_comes_together(
    tmp_path: Path,
    plan: list[tuple[int, int, int, int, bool]],
    num_blocks: int,
    num_outputs: int,
    max_num_seqs: int,
) -> None:
    rig = ToyRig(
        tmp_path,
        num_blocks=num_blocks,
        max_num_seqs=max_num_seqs,
        cache_bytes=num_outputs * OUTPUT_BYTES,
    )
    for number, (before, colour, length, steps, leaves) in enumerate(plan):
        image = rig.image(before, colour) if colour >= 0 else None
        rig.submit(f"{number}", [1] * before, image, max_tokens=length)
        rig.step(steps)
        if leaves:
            rig.engine.cancel(f"{number}")
    rig.step(3000)
    assert len(rig.ended) == len(plan)
    assert rig.encoding.num_bytes <= max(num_outputs, 1) * OUTPUT_BYTES
    rig.engine.check_when_idle()
