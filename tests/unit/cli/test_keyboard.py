"""Ctrl-C at a terminal, also where it finds the program in the middle of something."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from hearth.cli.keyboard import CtrlC

READS_A_LINE = """
import os, readline
from hearth.cli.keyboard import CtrlC, read_line
ctrl_c = CtrlC()
ctrl_c.install()
os.write(2, b"ready")
try:
    with ctrl_c:
        os.write(2, read_line("> ").encode())
except KeyboardInterrupt:
    os.write(2, b" interrupted")
"""


@pytest.fixture
def ctrl_c() -> Iterator[CtrlC]:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)
    timer = signal.setitimer(signal.ITIMER_REAL, 0)  # that of the test's own time limit
    found = CtrlC()
    found.install()
    yield found
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGALRM, before[1])
    signal.setitimer(signal.ITIMER_REAL, *timer)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_is_raised_where_it_is_expected_and_once(ctrl_c: CtrlC) -> None:
    def twice() -> None:
        try:
            interrupt()
        finally:
            interrupt()  # while the first one is being answered

    with pytest.raises(KeyboardInterrupt), ctrl_c:
        twice()
    with pytest.raises(KeyboardInterrupt), ctrl_c:
        pytest.fail("the second one was lost")
    with ctrl_c:
        pass  # and has been seen


def test_an_interrupt_that_nobody_expects_waits_for_the_next_who_does(ctrl_c: CtrlC) -> None:
    interrupt()
    interrupt()
    with pytest.raises(KeyboardInterrupt), ctrl_c:
        pytest.fail("it was lost")
    with ctrl_c:
        seen = True
    assert seen


@contextmanager
def reader(slave: int) -> Iterator[subprocess.Popen[bytes]]:
    """A program that reads a line from the terminal; what it has to say goes to a pipe."""
    with subprocess.Popen(
        [sys.executable, "-c", READS_A_LINE],
        stdin=slave,
        stdout=slave,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "dumb"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until_it_sleeps(pid: int) -> None:
    """Until the process waits for something, and has not moved for a moment."""
    process, before, num_same = psutil.Process(pid), -1, 0
    deadline = time.monotonic() + 20
    while num_same < 3:  # its timer moves it ten times a second
        assert time.monotonic() < deadline
        time.sleep(0.01)
        switches = process.num_ctx_switches().voluntary
        is_still = process.status() == psutil.STATUS_SLEEPING and switches == before
        before, num_same = switches, num_same + 1 if is_still else 0


def test_an_interrupt_between_the_prompt_and_the_wait_for_a_key_is_not_lost() -> None:
    """The terminal is stopped, so that it comes while readline writes its prompt: before it waits.

    A KeyboardInterrupt by the default handler would wait there until a line is entered.
    """
    master, slave = pty.openpty()
    try:
        termios.tcflow(slave, termios.TCOOFF)
        with reader(slave) as process:
            assert process.stderr is not None
            assert process.stderr.read(5) == b"ready"
            wait_until_it_sleeps(process.pid)
            process.send_signal(signal.SIGINT)
            termios.tcflow(slave, termios.TCOON)
            process.wait(20)
            assert process.stderr.read() == b" interrupted"
    finally:
        os.close(master)
        os.close(slave)
