"""What `hearth plan --target-step` says: what meets it, and up to which context."""

from __future__ import annotations

import pytest

from hearth.cli.plan_report import PlanReport, _target_line
from hearth.core.memory import MemoryItem
from hearth.engine.outlook import Load, Outlook
from hearth.engine.phone_plan import PhoneStep

MANY = 1 << 40


def outlook(scheme: str, longest_context: int = 30_000, available: int = MANY) -> Outlook:
    items = (MemoryItem("weights", 1 << 30, ""),)
    return Outlook(scheme, scheme, items, 1, available, longest_context, 1, None)


def report(*steps: PhoneStep, outlooks: tuple[Outlook, ...]) -> PlanReport:
    load = Load(8192, 1, 1024)
    return PlanReport("m", "A", 1, "", MANY, load, outlooks, "", steps, None, ())


BOTH = (outlook("int8"), outlook("int4"))
STEPS = (
    PhoneStep("int8", 5_000_000, 3000, 60.0, 40.0, 9000),
    PhoneStep("int8", 1_250_000, 750, 30.0, 20.0, 40_000),
    PhoneStep("int4", 5_000_000, 3000, 50.0, 30.0, 12_000),
)


def test_the_most_pixels_that_meet_it_come_with_their_longest_context() -> None:
    line = _target_line(report(*STEPS, outlooks=BOTH), 35.0)
    assert line == (
        "a step takes 35 s or less with --quantize int4 --max-pixels 5000000: 30.0 s, the first "
        "50.0 s; up to a context of 12,000 tokens, screenshot and answer included"
    )


def test_what_memory_holds_less_of_is_said() -> None:
    line = _target_line(report(*STEPS, outlooks=BOTH), 25.0)
    assert "--quantize int8 --max-pixels 1250000" in line
    assert "up to a context of 40,000 tokens" in line
    assert line.endswith("(the KV cache's share of memory holds 30,000)")


def test_a_target_that_shorter_histories_alone_meet_is_answered_with_them() -> None:
    step = PhoneStep("int4", 600_000, 350, 30.0, 20.0, 3100)
    line = _target_line(report(step, outlooks=BOTH), 19.0)
    assert line.startswith("no 10th step takes 19 s or less; the fastest: --quantize int4")
    assert "with --quantize int4 --max-pixels 600000 shorter ones do: up to a context of" in line


def test_a_target_that_nothing_meets_is_said() -> None:
    step = PhoneStep("int4", 600_000, 350, 30.0, 20.0, 0)
    line = _target_line(report(step, outlooks=BOTH), 1.0)
    assert line.endswith("; no later step of any context does")


@pytest.mark.parametrize("outlooks", [BOTH, (outlook("int8", available=0),)])
def test_without_steps_that_fit_nothing_is_known(outlooks: tuple[Outlook, ...]) -> None:
    steps = STEPS if len(outlooks) == 1 else ()
    assert "nothing is known" in _target_line(report(*steps, outlooks=outlooks), 35.0)
