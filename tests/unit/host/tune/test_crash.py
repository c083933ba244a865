"""kill -9 at every moment of a run: the way back is always there."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.host.tune import crashes
from tests.unit.host.tune.crashes import CHOSEN, Fuse, journal_of
from tests.unit.host.tune.trees import ALL, FakeKernel, lay_out, snapshot

from hearth.host.tune.journal import open_journal
from hearth.host.tune.runner import roll_back

ROOT = Path(__file__).parents[4]


def killed(root: Path, what: str, event: int) -> bool:
    """Whether the process came as far as that event, and died by it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.host.tune.crashes", str(root), what, str(event)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def restore(root: Path) -> list[str]:
    with open_journal(journal_of(root)) as journal:
        return [found.state for found in roll_back(FakeKernel(root), journal)]


# A process a case: some of the moments, and the next test has all of them.
@pytest.mark.parametrize("event", [1, 2, 3, 4, 5, 7, 17, 30, 38])
def test_a_run_that_is_killed_is_rolled_back_to_the_byte(tmp_path: Path, event: int) -> None:
    lay_out(tmp_path)
    before = snapshot(tmp_path)
    assert killed(tmp_path, "apply", event)
    restore(tmp_path)
    assert snapshot(tmp_path) == before
    assert restore(tmp_path) == []


@pytest.mark.parametrize("event", [0, 1, 2, 3, 4, 20])
def test_a_rollback_that_is_killed_goes_on_where_it_was(tmp_path: Path, event: int) -> None:
    lay_out(tmp_path)
    before = snapshot(tmp_path)
    assert not killed(tmp_path, "apply", 1000)
    assert snapshot(tmp_path) != before
    assert killed(tmp_path, "rollback", event)
    restore(tmp_path)
    assert snapshot(tmp_path) == before


class Killed(BaseException):
    """Ends a run in this process at once: nothing catches it."""


def die() -> None:
    raise Killed


def run(root: Path, what: str, event: int, chosen: frozenset[str], *, persist: bool) -> bool:
    """Whether it was killed."""
    try:
        crashes.run(root, what, Fuse(event, die), chosen, persist=persist)
    except Killed:
        return True
    return False


def test_every_moment_of_a_run_can_be_its_last(tmp_path: Path) -> None:
    lay_out(tmp_path)
    before = snapshot(tmp_path)
    num_events = 0
    while run(tmp_path, "apply", num_events, CHOSEN, persist=True):
        restore(tmp_path)
        assert snapshot(tmp_path) == before, num_events
        num_events += 1
    assert snapshot(tmp_path) != before
    assert num_events > 50


STEPS = st.tuples(
    st.sampled_from(["apply", "apply", "rollback"]),
    st.integers(0, 120),
    st.frozensets(st.sampled_from(sorted(ALL))),
    st.booleans(),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(STEPS, max_size=6))
def test_any_sequence_of_runs_crashes_and_rollbacks_ends_with_the_former_values(
    tmp_path: Path, steps: list[tuple[str, int, frozenset[str], bool]]
) -> None:
    root = tmp_path / "machine"
    shutil.rmtree(root, ignore_errors=True)
    lay_out(root)
    before = snapshot(root)
    for what, event, chosen, persist in steps:
        run(root, what, event, chosen, persist=persist)
    restore(root)
    assert snapshot(root) == before
